//! Proof by answer: a configuration is live when every front says its tag, and Headscale that it is well.
//!
//! `nginx -t` and a reload that exit 0 prove nothing: a taken port is ignored by both. And one good answer is
//! not the cut-over either, because a worker of the old configuration may take the next connection: so the
//! old workers are watched until none of them accepts any more.

use std::fs;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::desired::Probe;
use crate::facts::ports::reachable;

const GENERATION: &str = "/.dstack-vpc/generation";
const HEALTH: &str = "/health";
const PAUSE: Duration = Duration::from_millis(5);
/// How often old workers are looked at: nginx lets them go on for 100 ms beside the new ones.
const LOOK: Duration = Duration::from_millis(1);
const ANSWER: Duration = Duration::from_secs(1);

/// Waits until every listener answers, those of a front with `tag`, and none of `old_workers` accepts connections.
pub(super) async fn prove(
    probes: &[Probe],
    tag: &str,
    old_workers: &[i32],
    within: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + within;
    loop {
        let last = Instant::now() > deadline;
        let old = old_workers.iter().any(|pid| accepts(*pid));
        // As long as they accept no answer proves anything, and questions would take time from those who get ready.
        if !old || last {
            let why = match refusal(probes, tag).await {
                Some(why) => why,
                None if old => "workers of the old configuration still accept connections".to_owned(),
                None => return Ok(()),
            };
            if last {
                return Err(format!("{why} (waited {within:?})"));
            }
        }
        sleep(if old { LOOK } else { PAUSE }).await;
    }
}

/// What the first listener says that does not answer as it should.
async fn refusal(probes: &[Probe], tag: &str) -> Option<String> {
    for probe in probes {
        let why = match ask(probe).await {
            Ok(answer) if answer == tag || !probe.has_tag() => continue,
            Ok(_) => "it answers with another configuration".to_owned(),
            Err(error) => error,
        };
        return Some(format!("{} = \"{}\": {why}", probe.key, probe.listen));
    }
    None
}

async fn ask(probe: &Probe) -> Result<String, String> {
    let addr = reachable(probe.listen);
    let path = if probe.has_tag() { GENERATION } else { HEALTH };
    let asking = async {
        let stream = TcpStream::connect(addr)
            .await
            .map_err(|e| format!("cannot connect: {e}"))?;
        if probe.tls {
            let name = rustls_pki_types::ServerName::IpAddress(addr.ip().into());
            // The tag is no secret, and the port decides who is asked: nobody's identity matters here.
            let tls = crate::mesh::without_identity(&[]).map_err(|e| format!("TLS: {e}"))?;
            let connector = tokio_rustls::TlsConnector::from(tls);
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|e| format!("TLS: {e}"))?;
            get(stream, path).await
        } else {
            get(stream, path).await
        }
    };
    timeout(ANSWER, asking)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}")))
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> Result<String, String> {
    let words = |error: hyper::Error| format!("no HTTP answer: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(words)?;
    let request = Request::get(path)
        .header("host", "localhost")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(words)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 1024)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        match status.is_success() {
            true => Ok(String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()),
            false if path == HEALTH => Err(format!("answers {status}: it is not well")),
            false => Err(format!(
                "answers {status}: it is not our nginx, or not this configuration"
            )),
        }
    };
    // The connection is driven beside the exchange and dropped with it: no task is left behind.
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended.map_err(words)?;
            exchange.await
        }
    }
}

/// The pids of nginx's workers that accept connections: a worker that drains says so in its title.
pub(super) fn workers(nginx: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{nginx}/task/{nginx}/children")).unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter(|pid| accepts(*pid)).collect()
}

/// Whether a worker does: one that drains says so in its title.
pub(super) fn accepts(pid: i32) -> bool {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title);
    title.contains("worker process") && !title.contains("shutting down")
}
