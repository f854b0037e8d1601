//! Callers of a front with certificates, as many and as quick as this computer lets them be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dstack_vpc::agent::dev::Issued;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use rustls_pki_types::ServerName;
use socket2::SockRef;

use crate::common::CLIENT_APP;
use crate::common::machine::Machine;
use crate::common::tls::Caller;
use crate::compare::Pace;
use crate::peers::{Answers, Hop, Part};
use crate::shared::proc;
use crate::shared::targets::Limit::AtLeast;
use crate::shared::targets::Target;
use crate::stage::{OURS, Stage};
use crate::turns::{Page, Turns};

/// At once.
pub(crate) const CALLERS: usize = 16;

/// A front that is called.
pub(crate) struct Called {
    pub(crate) name: &'static str,
    pub(crate) addr: SocketAddr,
    pub(crate) pids: Vec<i32>,
}

impl Called {
    pub(crate) fn ours(machine: &Machine) -> Self {
        Self {
            name: OURS,
            addr: machine.ports.https.addr(),
            pids: Part::daemon("", machine).pids,
        }
    }

    pub(crate) fn nginx(hop: &Hop) -> Self {
        Self {
            name: "nginx",
            addr: hop.port.addr(),
            pids: hop.program.part("").pids,
        }
    }
}

/// New connections with client certificates, of callers that come for the first time, and of those that were there before.
pub(crate) async fn newcomers(stage: &Stage, pace: Pace) -> Result<Page> {
    let pace = pace.aside();
    let backend = Answers::start(&stage.files).await?;
    let ours = stage.serving_with("builtin", backend.plain.addr()).await?;
    let nginx = Hop::front(&stage.files, backend.plain.addr()).await?;
    let fronts = [Called::ours(&ours), Called::nginx(&nginx)];
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

pub(crate) fn config(issued: &Issued, resumes: bool) -> Arc<ClientConfig> {
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
pub(crate) fn call(
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

pub(crate) fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| anyhow::bail!("a caller panicked"))
}
