//! Bytes over TCP: from a forward to a TCP backend, beside other pairs of programs that do the same.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::libc::MSG_TRUNC;
use socket2::SockRef;

use crate::common::machine::Machine;
use crate::compare::Pace;
use crate::peers::{Part, Tunnel};
use crate::shared::proc;
use crate::shared::targets::Limit::AtLeast;
use crate::shared::targets::Target;
use crate::stage::{OURS, Stage};
use crate::turns::{Page, Turns};

/// Written, or taken, at once; bytes.
const CHUNK: usize = 256 * 1024;
const WARM_UP: Duration = Duration::from_millis(500);
const GIB: f64 = (1u64 << 30) as f64;

/// Throughput of everybody, and what it costs.
pub(crate) async fn throughput(stage: &Stage, pace: Pace) -> Result<Page> {
    let pace = pace.aside();
    let ends = Ends::start()?;
    let (client, server, forward) = stage.streaming(ends.addr).await?;
    let haproxy = Tunnel::haproxy(&stage.files, ends.addr).await?;
    let ghostunnel = Tunnel::ghostunnel(&stage.files, ends.addr).await?;
    let whole = |machine: &Machine| Part::daemon("", machine).pids;
    let peers = [
        (OURS, forward.addr(), [whole(&client), whole(&server)]),
        ("haproxy", haproxy.near.port.addr(), haproxy.pids()),
        ("ghostunnel", ghostunnel.near.port.addr(), ghostunnel.pids()),
    ];
    let mut page = Page::new(
        "TCP",
        "One program → forward → mutual TLS → TCP backend → another program, as many bytes as go, beside haproxy in TCP mode and \
         ghostunnel on both sides. Only TLS 1.3.",
        &[
            "sessions",
            "",
            "MiB/s",
            "calling side, CPU s/GiB",
            "serving side, CPU s/GiB",
            "÷ haproxy: MiB/s, CPU",
        ],
    );
    let sessions: &[usize] = if pace.full { &[1, 16] } else { &[4] };
    for (count, down) in sessions
        .iter()
        .flat_map(|count| [(*count, false), (*count, true)])
    {
        let name = format!("{count} {}", if down { "down" } else { "up" });
        eprintln!("bench: TCP, {name}");
        let turns = Turns::take(pace.rounds, &peers, |(_, addr, sides)| {
            let cpu = || [proc::cpu(&sides[0]), proc::cpu(&sides[1])];
            ends.run(*addr, count, down, pace.run, cpu)
        })?;
        for (at, (peer, ..)) in peers.iter().enumerate() {
            let side = |side: usize| format!("{:.2}", turns.of(at, |flow| flow.cpu[side]));
            let ratio = |figure: fn(&Flow) -> f64| turns.ratio(at, 1, figure);
            page.row(&[
                name.clone(),
                (*peer).to_owned(),
                format!("{:.0}", turns.of(at, |flow| flow.bytes) / f64::from(1 << 20)),
                side(0),
                side(1),
                match *peer {
                    "haproxy" => "1".to_owned(),
                    _ => format!("{:.2}, **{:.2}**", ratio(|flow| flow.bytes), ratio(Flow::cost)),
                },
            ]);
        }
        for (against, limit, unit) in [(1, 0.9, " × haproxy"), (2, 1.0, " × ghostunnel")] {
            let ratio = turns.ratio(0, against, |flow| flow.bytes);
            page.targets.push(Target::new(
                format!("TCP, {name}: MiB/s"),
                AtLeast(limit, unit),
                ratio,
            ));
        }
    }
    Ok(page)
}

/// What went through.
struct Flow {
    /// A second.
    bytes: f64,
    /// Seconds for a GiB, on either side.
    cpu: [f64; 2],
}

impl Flow {
    fn cost(&self) -> f64 {
        self.cpu.iter().sum()
    }
}

/// The programs on both sides. The one that serves is told by the first byte who is to speak.
struct Ends {
    addr: SocketAddr,
    /// Bytes that arrived at either end.
    arrived: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

const UP: u8 = b'u';
const DOWN: u8 = b'd';

impl Ends {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let ends = Self {
            addr: listener.local_addr()?,
            arrived: Arc::default(),
            over: Arc::default(),
        };
        let (arrived, over) = (Arc::clone(&ends.arrived), Arc::clone(&ends.over));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (arrived, over) = (Arc::clone(&arrived), Arc::clone(&over));
                thread::spawn(move || serve(stream, &arrived, &over));
            }
        });
        Ok(ends)
    }

    fn run(
        &self,
        at: SocketAddr,
        sessions: usize,
        down: bool,
        long: Duration,
        cpu: impl Fn() -> [u64; 2],
    ) -> Result<Flow> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..sessions {
                scope.spawn(|| {
                    let Ok(mut stream) = TcpStream::connect(at) else {
                        return;
                    };
                    // Broken off, so that nothing of it is under way in the next turn.
                    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    let first = [if down { DOWN } else { UP }];
                    if stream.write_all(&first).is_err() {
                        return;
                    }
                    match down {
                        true => take(&stream, &self.arrived, &stop),
                        false => give(stream, &stop),
                    }
                });
            }
            thread::sleep(WARM_UP);
            let look = || (Instant::now(), self.arrived.load(Ordering::Relaxed), cpu());
            let before = look();
            thread::sleep(long);
            let after = look();
            stop.store(true, Ordering::Relaxed);
            let bytes = (after.1 - before.1) as f64;
            ensure!(bytes > 0.0, "nothing arrives through {at}");
            let spent = |side: usize| (after.2[side] - before.2[side]) as f64 / 1e6;
            Ok(Flow {
                bytes: bytes / (after.0 - before.0).as_secs_f64(),
                cpu: [0, 1].map(|side| spent(side) / (bytes / GIB)),
            })
        })
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(mut stream: TcpStream, arrived: &AtomicU64, over: &AtomicBool) {
    let mut first = [0];
    match stream.read(&mut first) {
        Ok(1) if first == [UP] => take(&stream, arrived, over),
        Ok(1) if first == [DOWN] => give(stream, over),
        _ => {}
    }
}

/// Until somebody has enough.
fn give(mut stream: TcpStream, stop: &AtomicBool) {
    let bytes = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) && stream.write_all(&bytes).is_ok() {}
}

fn take(stream: &TcpStream, arrived: &AtomicU64, stop: &AtomicBool) {
    let socket = SockRef::from(stream);
    let mut nowhere = [MaybeUninit::uninit(); CHUNK];
    while !stop.load(Ordering::Relaxed) {
        // tcp(7): they are discarded where they are, so that this end costs little.
        match socket.recv_with_flags(&mut nowhere, MSG_TRUNC) {
            Ok(0) | Err(_) => return,
            Ok(count) => drop(arrived.fetch_add(count as u64, Ordering::Relaxed)),
        }
    }
}
