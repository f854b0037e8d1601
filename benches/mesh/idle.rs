//! What connections cost that had one request and wait for the next.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use dstack_vpc::agent::dev::pki::{Forgery, Issued, LeafRequest, app_id_extension, usage_extension};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::CustomExtension;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::callers::{CALLERS, Called, call, config, joined};
use crate::common::CLIENT_APP;
use crate::peers::{Answers, Hop};
use crate::shared::proc;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::stage::{OURS, Stage};
use crate::turns::Page;

/// Connections that do nothing.
const IDLE: usize = 10_000;
/// Open files that a front of ours wants for so many: two each, and some for itself.
const FILES: u64 = 2 * IDLE as u64 + 1024;
const MIB: f64 = (1 << 20) as f64;
/// In bytes: what a TDX quote and the log of what was measured take in a certificate of RA-TLS.
const QUOTE: usize = 16 * 1024;
/// Where dstack's certificates carry it.
const QUOTE_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 1];

/// Which connections.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    h2: bool,
    quote: bool,
    /// For [`IDLE`] of them.
    most: Option<f64>,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "HTTP/1.1",
        h2: false,
        quote: false,
        most: Some(150.0),
    },
    Kind {
        name: "HTTP/2",
        h2: true,
        quote: false,
        most: None,
    },
    Kind {
        name: "HTTP/1.1, 16 KiB of quote in each certificate",
        h2: false,
        quote: true,
        most: None,
    },
];

/// Memory that peers take who say nothing.
pub(crate) async fn peers(stage: &Stage) -> Result<Page> {
    let count = room()?;
    let backend = Answers::start(&stage.files).await?;
    let mut page = Page::new(
        "Idle connections of peers",
        &format!(
            "{count} TLS 1.3 connections with client certificates that had one request and stay open, with a front that has done nothing \
             else before."
        ),
        &[
            "connections",
            "",
            "RSS before, MiB",
            "RSS with them, MiB",
            "KiB each",
        ],
    );
    for kind in KINDS {
        for name in [OURS, "nginx"] {
            eprintln!("bench: idle connections, {}, {name}", kind.name);
            let (ours, nginx);
            let front = if name == OURS {
                ours = stage.serving_with("builtin", backend.plain.addr()).await?;
                Called::ours(&ours)
            } else {
                nginx = Hop::front(&stage.files, backend.plain.addr()).await?;
                Called::nginx(&nginx)
            };
            let before = proc::resident(&front.pids) as f64;
            let open = gather(&front, kind, &issued(stage, kind), count)?;
            let with = settled(&front);
            let left = open.iter().filter(|stream| !is_open(stream)).count();
            ensure!(left == 0, "{name} closed {left} of {count} connections");
            let mib = |bytes: f64| format!("{:.0}", bytes / MIB);
            let each = (with - before) / count as f64;
            page.row(&[
                kind.name.to_owned(),
                name.to_owned(),
                mib(before),
                mib(with),
                format!("{:.1}", each / 1024.0),
            ]);
            if let (OURS, Some(most)) = (name, kind.most) {
                let what = format!("memory with {IDLE} idle connections of peers");
                let got = (before + each * IDLE as f64) / MIB;
                page.targets.push(Target::new(what, AtMost(most, " MiB"), got));
            }
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

fn issued(stage: &Stage, kind: Kind) -> Issued {
    let mut request = LeafRequest::both();
    if kind.quote {
        let app = CLIENT_APP.parse().expect("an app id");
        // As DER has a string of bytes of this length.
        let mut quote = vec![0x04, 0x82, (QUOTE >> 8) as u8, QUOTE as u8];
        quote.extend((0..QUOTE).map(|at| at as u8));
        request.forgery = Forgery {
            leaf_extensions: Some(vec![
                app_id_extension(&app),
                usage_extension("app:custom"),
                CustomExtension::from_oid_content(&QUOTE_OID, quote),
            ]),
            ..Forgery::default()
        };
    }
    stage.agent.issue_as(CLIENT_APP, &request)
}

fn gather(front: &Called, kind: Kind, issued: &Issued, count: usize) -> Result<Vec<TcpStream>> {
    let once = |config: &Arc<ClientConfig>| match kind.h2 {
        true => call_http2(config, front),
        // What this end knows of TLS is not needed any more.
        false => Ok(call(config, front.addr, "keep-alive")?.sock),
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<TcpStream>> {
                    let mut config = ClientConfig::clone(&*config(issued, false));
                    if kind.h2 {
                        config.alpn_protocols = vec![b"h2".to_vec()];
                    }
                    let config = Arc::new(config);
                    (0..count / CALLERS).map(|_| once(&config)).collect()
                })
            })
            .collect();
        let open: Result<Vec<_>> = callers.into_iter().map(joined).collect();
        Ok(open?.into_iter().flatten().collect())
    })
}

/// A request that the front answers by itself, as the only one of a connection over HTTP/2.
fn call_http2(config: &Arc<ClientConfig>, front: &Called) -> Result<TcpStream> {
    let socket = TcpStream::connect(front.addr)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let tls = ClientConnection::new(Arc::clone(config), ServerName::IpAddress(front.addr.ip().into()))?;
    let mut stream = StreamOwned::new(tls, socket);
    // RFC 9113: the preface, empty SETTINGS, and HEADERS that end their stream. RFC 7541: GET and https by their numbers,
    // :path and :authority as they are.
    let head = b"\x82\x87\x44\x07/health\x41\x09app.local";
    let frame = [0, 0, head.len() as u8, 1, 0x05, 0, 0, 0, 1];
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(&[&preface[..], &settings, &frame, head].concat())?;
    let mut answer = Vec::new();
    // The end of a frame of DATA on the first stream.
    while !answer.windows(6).any(|bytes| bytes == b"\0\0\0\x01OK") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "no answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])?;
    Ok(stream.sock)
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

/// Whatever the front has said since, it has not said goodbye.
fn is_open(mut stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
