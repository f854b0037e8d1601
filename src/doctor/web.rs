//! One GET, for looking at somebody's listener: any certificate is taken and kept to be judged afterwards.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use url::Url;

use crate::http::{Trust, exchange_whole, secured};

/// From name to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

const MAX_ANSWER: usize = 64 << 10;

/// What came.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    pub(super) date: Option<Date>,
    /// Leaf first; empty without TLS.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// Somebody else's clock, and ours at that moment.
#[derive(Debug, Clone)]
pub(super) struct Date {
    pub(super) theirs: SystemTime,
    pub(super) ours: SystemTime,
    /// Whose it is, e.g. `https://gateway.example.com:9202`.
    pub(super) source: String,
}

/// # Errors
/// A sentence without the URL.
pub(super) async fn get(url: &Url, headers: &[(&str, &str)]) -> Result<Page, String> {
    tokio::time::timeout(PATIENCE, get_patiently(url, headers))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}s", PATIENCE.as_secs())))
}

/// Whether anybody knows an address of that name.
pub(super) async fn is_known(name: &str) -> bool {
    if is_loopback(name) {
        return true;
    }
    let found = tokio::net::lookup_host((name, 0)).await;
    found.is_ok_and(|mut addresses| addresses.next().is_some())
}

/// As the mesh does: names below `localhost` are loopback, and no resolver need be asked (RFC 6761 §6.3).
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if is_loopback(host) {
        let loopback: [SocketAddr; 2] = [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ];
        return TcpStream::connect(&loopback[..]).await;
    }
    TcpStream::connect((host, port)).await
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

async fn get_patiently(url: &Url, headers: &[(&str, &str)]) -> Result<Page, String> {
    let host = url.host_str().ok_or("there is no host in it")?;
    let port = url.port_or_known_default().ok_or("there is no port in it")?;
    let mut request = Request::get(url.path())
        .header(header::ACCEPT, "application/json")
        .header(header::HOST, format!("{host}:{port}"));
    for (name, value) in headers {
        if let Some(all) = request.headers_mut() {
            all.remove(*name);
        }
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::<Bytes>::default())
        .map_err(|e| e.to_string())?;
    let tcp = connect(host, port).await.map_err(|e| e.to_string())?;
    let (stream, chain) = secured(url, tcp, Trust::Anyone)
        .await
        .map_err(|e| e.to_string())?;
    let answer = exchange_whole(stream, request, MAX_ANSWER).await;
    let (head, body) = answer.map_err(|e| e.to_string())?.into_parts();
    let date = head
        .headers
        .get(header::DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .map(|theirs| Date {
            theirs,
            ours: SystemTime::now(),
            source: url.origin().ascii_serialization(),
        });
    Ok(Page {
        status: head.status,
        body,
        date,
        chain,
    })
}
