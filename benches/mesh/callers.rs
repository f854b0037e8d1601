//! Callers of a front with certificates, as many and as quick as this computer lets them be.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dstack_vpc::agent::dev::Issued;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use rustls_pki_types::ServerName;
use socket2::SockRef;

use crate::common::CLIENT_APP;
use crate::common::tls::Caller;
use crate::compare::Pace;
use crate::peers::{Answers, Hop, Part};
use crate::shared::proc;
use crate::shared::targets::Limit::{AtLeast, AtMost};
use crate::shared::targets::Target;
use crate::stage::{OURS, Stage};
use crate::turns::{Page, Turns};

/// At once.
const CALLERS: usize = 16;
/// Connections that do nothing.
const IDLE: usize = 10_000;
/// Open files that a front of ours wants for so many: two each, and some for itself.
const FILES: u64 = 2 * IDLE as u64 + 1024;
const MIB: f64 = (1 << 20) as f64;

/// A front that is called.
struct Called {
    name: &'static str,
    addr: SocketAddr,
    pids: Vec<i32>,
}

/// New connections with client certificates, of callers that come for the first time, and of those that were there before.
pub(crate) async fn newcomers(stage: &Stage, pace: Pace) -> Result<Page> {
    let pace = pace.aside();
    let backend = Answers::start(&stage.files).await?;
    let ours = stage.serving_with("builtin", backend.plain.addr()).await?;
    let nginx = Hop::front(&stage.files, backend.plain.addr()).await?;
    let fronts = [
        Called {
            name: OURS,
            addr: ours.ports.https.addr(),
            pids: Part::daemon("", &ours).pids,
        },
        Called {
            name: "nginx",
            addr: nginx.port.addr(),
            pids: nginx.program.part("").pids,
        },
    ];
    let mut page = Page::new(
        "New connections of peers",
        &format!(
            "{CALLERS} callers at once, each with a new TLS 1.3 connection and a client certificate for each request, which the front \
             answers by itself: the built-in front beside an nginx that asks nobody."
        ),
        &[
            "handshakes",
            "",
            "connections/s",
            "front µs each",
            "resumed",
            "÷ nginx: connections/s, CPU",
        ],
    );
    for (name, resumes) in [("full", false), ("resumed", true)] {
        eprintln!("bench: new connections, {name}");
        let once = |front: &Called| crowd(front, &stage.agent.issue(CLIENT_APP), resumes, pace.run);
        for front in &fronts {
            once(front)?;
        }
        let turns = Turns::take(pace.rounds, &fronts, once)?;
        for (at, front) in fronts.iter().enumerate() {
            let ratio = |figure: fn(&Coming) -> f64| turns.ratio(at, 1, figure);
            page.row(&[
                name.to_owned(),
                front.name.to_owned(),
                format!("{:.0}", turns.of(at, |coming| coming.connections)),
                format!("{:.0}", turns.of(at, |coming| coming.cpu)),
                format!("{:.0} %", 100.0 * turns.of(at, |coming| coming.resumed)),
                match at {
                    1 => "1".to_owned(),
                    _ => format!(
                        "{:.2}, **{:.2}**",
                        ratio(|coming| coming.connections),
                        ratio(|coming| coming.cpu)
                    ),
                },
            ]);
        }
        let ratio = turns.ratio(0, 1, |coming| coming.connections);
        let what = format!("new connections of peers, {name}");
        page.targets
            .push(Target::new(what, AtLeast(1.0, " × nginx"), ratio));
    }
    Ok(page)
}

/// Those who came in one turn.
struct Coming {
    /// A second.
    connections: f64,
    /// Microseconds of the front for each.
    cpu: f64,
    /// Their share.
    resumed: f64,
}

fn crowd(front: &Called, issued: &Issued, resumes: bool, long: Duration) -> Result<Coming> {
    let (came, resumed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (before, began) = (proc::cpu(&front.pids), Instant::now());
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let config = config(issued, resumes);
                    while began.elapsed() < long {
                        let stream = call(&config, front.addr, "close")?;
                        came.fetch_add(1, Ordering::Relaxed);
                        let kind = stream.conn.handshake_kind();
                        resumed.fetch_add(
                            usize::from(kind == Some(HandshakeKind::Resumed)),
                            Ordering::Relaxed,
                        );
                        // Nothing of it is left to wait for the port to be free again.
                        SockRef::from(&stream.sock).set_linger(Some(Duration::ZERO))?;
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(joined)
    })
    .with_context(|| format!("{} does not let a caller in", front.name))?;
    let came = came.into_inner() as f64;
    Ok(Coming {
        connections: came / began.elapsed().as_secs_f64(),
        cpu: (proc::cpu(&front.pids) - before) as f64 / came,
        resumed: resumed.into_inner() as f64 / came,
    })
}

/// What connections cost that had one request and wait for the next.
pub(crate) async fn idle(stage: &Stage) -> Result<Page> {
    let count = room()?;
    let backend = Answers::start(&stage.files).await?;
    let mut page = Page::new(
        "Idle connections of peers",
        &format!(
            "{count} TLS 1.3 connections with client certificates that had one request and stay open, with a front that has done nothing \
             else before."
        ),
        &["", "RSS before, MiB", "RSS with them, MiB", "KiB each"],
    );
    for name in [OURS, "nginx"] {
        eprintln!("bench: idle connections, {name}");
        let (ours, nginx);
        let front = if name == OURS {
            ours = stage.serving_with("builtin", backend.plain.addr()).await?;
            Called {
                name,
                addr: ours.ports.https.addr(),
                pids: Part::daemon("", &ours).pids,
            }
        } else {
            nginx = Hop::front(&stage.files, backend.plain.addr()).await?;
            Called {
                name,
                addr: nginx.port.addr(),
                pids: nginx.program.part("").pids,
            }
        };
        let before = proc::resident(&front.pids) as f64;
        let open = gather(&front, &stage.agent.issue(CLIENT_APP), count)?;
        let with = settled(&front);
        let left = open.iter().filter(|stream| !is_open(stream)).count();
        ensure!(left == 0, "{name} closed {left} of {count} connections");
        let mib = |bytes: f64| format!("{:.0}", bytes / MIB);
        let each = (with - before) / count as f64;
        page.row(&[
            name.to_owned(),
            mib(before),
            mib(with),
            format!("{:.1}", each / 1024.0),
        ]);
        if name == OURS {
            let what = format!("memory with {IDLE} idle connections of peers");
            page.targets.push(Target::new(
                what,
                AtMost(150.0, " MiB"),
                (before + each * IDLE as f64) / MIB,
            ));
        }
    }
    Ok(page)
}

/// Connections that both ends have descriptors for, all of them where this user may raise the limit.
fn room() -> Result<usize> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, FILES, most.max(FILES));
    let files = match raised {
        Ok(()) => FILES,
        Err(_) => now.min(FILES),
    };
    // In equal parts.
    let each = files.saturating_sub(1024) as usize / 2 / CALLERS;
    ensure!(each > 0, "too few open files: ulimit -n {FILES}");
    Ok(each * CALLERS)
}

fn gather(front: &Called, issued: &Issued, count: usize) -> Result<Vec<TcpStream>> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<TcpStream>> {
                    let config = config(issued, false);
                    // What this end knows of TLS is not needed any more.
                    let open =
                        (0..count / CALLERS).map(|_| Ok(call(&config, front.addr, "keep-alive")?.sock));
                    open.collect()
                })
            })
            .collect();
        let open: Result<Vec<_>> = callers.into_iter().map(joined).collect();
        Ok(open?.into_iter().flatten().collect())
    })
}

/// Resident memory once it does not fall any more: what was for the handshakes and for requests is given back a little later.
fn settled(front: &Called) -> f64 {
    let mut least = u64::MAX;
    loop {
        thread::sleep(Duration::from_secs(8));
        let now = proc::resident(&front.pids);
        if now >= least {
            return least as f64;
        }
        least = now;
    }
}

fn is_open(stream: &TcpStream) -> bool {
    let nothing = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(nothing)
}

fn config(issued: &Issued, resumes: bool) -> Arc<ClientConfig> {
    let mut config = Caller::with(issued.clone()).config();
    // As our own kind offers it.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = match resumes {
        true => Resumption::in_memory_sessions(8),
        false => Resumption::disabled(),
    };
    Arc::new(config)
}

/// A new connection and a request on it that the front answers by itself.
fn call(
    config: &Arc<ClientConfig>,
    at: SocketAddr,
    connection: &str,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(at)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let tls = ClientConnection::new(Arc::clone(config), ServerName::IpAddress(at.ip().into()))?;
    let mut stream = StreamOwned::new(tls, socket);
    write!(
        stream,
        "GET /health HTTP/1.1\r\nhost: app.local\r\nconnection: {connection}\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nOK") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "no answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    Ok(stream)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| anyhow::bail!("a caller panicked"))
}
