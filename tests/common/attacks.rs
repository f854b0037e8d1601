//! Requests that two parsers may read in two ways, as data; and a witness that notes what of them arrives.
//!
//! Each is sent on a connection of its own, all at once, so that they share the pooled connections behind the proxy.

#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// What may arrive behind the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// No whole request.
    Nothing,
    /// Exactly one, with this body.
    Once(&'static str),
    /// One with this body, or none: parsers differ, and both are right.
    Perhaps(&'static str),
    /// Nothing through our own parser. nginx takes more, and passes it on clean.
    NotOurs,
}

pub struct Attack {
    pub name: String,
    pub bytes: Vec<u8>,
    pub may: May,
}

use May::{NotOurs, Nothing, Once, Perhaps};

/// A request inside another.
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: app.local\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Every attack, for the app that is called. Where it names a path it is `/attack/<number>`.
pub fn all(app: &str) -> Vec<Attack> {
    let mut all = Vec::new();
    let us = format!("Host: app.local\r\nx-dstack-target-app: {app}\r\n");
    let mut add = |name: &str, bytes: String, may: May| {
        let path = format!("/attack/{}", all.len());
        all.push(Attack {
            name: name.escape_debug().to_string(),
            // Latin-1, so that any byte can be written here.
            bytes: bytes.replace("/PATH", &path).chars().map(|c| c as u8).collect(),
            may,
        });
    };

    for (value, may) in [
        ("chunked", Once("hello")),
        ("CHUNKED", Once("hello")),
        ("\tchunked", Perhaps("hello")),
        ("chunked\t", Perhaps("hello")),
        ("xchunked", Nothing),
        ("chunkedx", Nothing),
        ("identity", Nothing),
        ("chunked, identity", Nothing),
        ("identity, chunked", Nothing),
        ("gzip, chunked", Nothing),
        ("chunked, chunked", Nothing),
        ("chunked,", Nothing),
        (",chunked", Nothing),
        ("chunked;q=1", Nothing),
        ("\"chunked\"", Nothing),
        ("chunked\u{0b}", Nothing),
        ("\u{0b}chunked", Nothing),
        ("chunked\0", Nothing),
        ("chun ked", Nothing),
        ("", Nothing),
        ("chunked\r\nTransfer-Encoding: chunked", Nothing),
        ("chunked\r\nTransfer-Encoding: identity", Nothing),
        ("identity\r\nTransfer-Encoding: chunked", Nothing),
        ("\r\n chunked", Nothing),
        ("chunked\r\nContent-Length: 5", Perhaps("hello")),
    ] {
        let body = "5\r\nhello\r\n0\r\n\r\n";
        add(
            &format!("coding {value}"),
            format!("POST /PATH HTTP/1.1\r\n{us}Transfer-Encoding: {value}\r\n\r\n{body}"),
            may,
        );
    }
    for (line, may) in [
        ("Transfer-Encoding : chunked\r\n", Nothing),
        (" Transfer-Encoding: chunked\r\n", Nothing),
        ("Transfer-Encoding\0: chunked\r\n", Nothing),
        ("X: y\rTransfer-Encoding: chunked\r\n", Nothing),
        ("X: y\nTransfer-Encoding: chunked\n", Perhaps("hello")),
        // Headers of no meaning to anyone: what follows is no request.
        ("Transfer_Encoding: chunked\r\n", Perhaps("")),
        ("X-Transfer-Encoding: chunked\r\n", Once("")),
    ] {
        add(
            &format!("coding line {line}"),
            format!("POST /PATH HTTP/1.1\r\n{us}{line}\r\n5\r\nhello\r\n0\r\n\r\n"),
            may,
        );
    }
    add(
        "coding in HTTP/1.0",
        format!("POST /PATH HTTP/1.0\r\n{us}{CHUNKED}\r\n0\r\n\r\n"),
        Nothing,
    );
    let hidden = format!("0\r\n\r\nGET /smuggled HTTP/1.1\r\n{us}\r\n");
    for both in [
        format!("Content-Length: {}\r\n{CHUNKED}", hidden.len()),
        format!("{CHUNKED}Content-Length: {}\r\n", hidden.len()),
    ] {
        add(
            "length and coding",
            format!("POST /PATH HTTP/1.1\r\n{us}{both}\r\n{hidden}"),
            Perhaps(""),
        );
    }
    add(
        "coding and a length that hides a chunk",
        format!("POST /PATH HTTP/1.1\r\n{us}Content-Length: 4\r\n{CHUNKED}\r\n5\r\nhello\r\n0\r\n\r\n"),
        Perhaps("hello"),
    );

    for (value, may) in [
        ("5", Once("hello")),
        ("05", Perhaps("hello")),
        ("5\r\nContent-Length: 5", Perhaps("hello")),
        ("+5", Nothing),
        ("-5", Nothing),
        ("-0", Nothing),
        ("5, 5", Nothing),
        ("5,6", Nothing),
        ("5 5", Nothing),
        ("5;", Nothing),
        ("5.0", Nothing),
        ("0x5", Nothing),
        ("5e0", Nothing),
        ("", Nothing),
        ("five", Nothing),
        ("5\u{0b}", Nothing),
        ("5\0", Nothing),
        ("\u{b2}", Nothing),
        ("5\r\nContent-Length: 6", Nothing),
        ("6\r\nContent-Length: 5", Nothing),
        ("5\r\n 5", Nothing),
        ("9223372036854775807", Nothing),
        ("18446744073709551615", Nothing),
        ("18446744073709551621", Nothing),
        ("99999999999999999999999999", Nothing),
    ] {
        add(
            &format!("length {value}"),
            format!("POST /PATH HTTP/1.1\r\n{us}Content-Length: {value}\r\n\r\nhello"),
            may,
        );
    }

    for (chunks, may) in [
        ("5\r\nhello\r\n0\r\n\r\n", Once("hello")),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Once("hello")),
        ("005\r\nhello\r\n00\r\n\r\n", Perhaps("hello")),
        ("5 \r\nhello\r\n0\r\n\r\n", Perhaps("hello")),
        ("5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", Perhaps("hello")),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5\nhello\r\n0\r\n\r\n", NotOurs),
        ("5\rhello\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello\n0\r\n\r\n", NotOurs),
        ("5\r\nhelloX\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello0\r\n\r\n", Nothing),
        ("+5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("-5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("0x5\r\nhello\r\n0\r\n\r\n", Nothing),
        (" 5\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5 5\r\nhello\r\n0\r\n\r\n", NotOurs),
        ("g\r\nhello\r\n0\r\n\r\n", Nothing),
        ("\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5,\r\nhello\r\n0\r\n\r\n", Nothing),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", Nothing),
        ("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", Nothing),
        ("fffffffffffffffff0\r\nhello\r\n0\r\n\r\n", Nothing),
        ("5\r\nhello\r\n", Nothing),
        ("5\r\nhello\r\n0\r\n", Nothing),
        ("5\r\nhello\r\n0\r\nX", Nothing),
        ("5\r\nhello\r\n0\r\n\n", Perhaps("hello")),
        (
            "5\r\nhello\r\n0\r\nContent-Length: 99\r\nHost: evil\r\nTransfer-Encoding: chunked\r\nX-Dstack-App-Id: 1\r\n\r\n",
            Perhaps("hello"),
        ),
        ("5\r\nhello\r\n0\r\n: x\r\n\r\n", Perhaps("hello")),
        ("5\r\nhello\r\n0\r\nx y: 1\r\n\r\n", Perhaps("hello")),
    ] {
        let chunks =
            format!("POST /PATH HTTP/1.1\r\n{us}{CHUNKED}Trailer: host, content-length\r\n\r\n{chunks}");
        add(
            &format!(
                "chunks {}",
                &chunks[chunks.rfind("length\r\n").unwrap_or(0) + 10..]
            ),
            chunks,
            may,
        );
    }
    for (name, chunks) in [
        (
            "megabytes of extensions",
            format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(2_000_000)),
        ),
        (
            "many small extensions",
            format!("{}0\r\n\r\n", "1;aaaaaaaa\r\nx\r\n".repeat(20_000)),
        ),
        ("many trailers", format!("0\r\n{}\r\n", "x: 1\r\n".repeat(20_000))),
        (
            "a large trailer",
            format!("0\r\nx: {}\r\n\r\n", "a".repeat(2_000_000)),
        ),
    ] {
        add(
            name,
            format!("POST /PATH HTTP/1.1\r\n{us}{CHUNKED}\r\n{chunks}"),
            NotOurs,
        );
    }

    for (name, line, may) in [
        ("a folded header", "X-A: 1\r\n 2\r\n", Nothing),
        ("a header folded by a tab", "X-A: 1\r\n\t2\r\n", Nothing),
        ("space before a colon", "X-A : 1\r\n", Nothing),
        ("tab before a colon", "X-A\t: 1\r\n", Nothing),
        ("no colon", "X-A\r\n", NotOurs),
        ("no name", ": 1\r\n", Nothing),
        ("NUL in a name", "X\0A: 1\r\n", Nothing),
        ("NUL in a value", "X-A: \0\r\n", Nothing),
        ("a control in a value", "X-A: \u{1}\r\n", Perhaps("")),
        ("DEL in a value", "X-A: \u{7f}\r\n", Perhaps("")),
        ("a bare CR in a value", "X-A: 1\r2\r\n", Nothing),
        ("a bare CR before CRLF", "X-A: 1\r\r\n", NotOurs),
        ("a bare LF after a header", "X-A: 1\n", Perhaps("")),
        ("Latin-1 in a name", "X-\u{e4}: 1\r\n", Perhaps("")),
        ("Latin-1 in a value", "X-A: \u{e4}\r\n", Once("")),
        (
            "a header that injects another",
            "X-A: 1\rX-Dstack-App-Id: 1\r\n",
            Nothing,
        ),
        ("two hosts", "Host: other.local\r\n", Nothing),
        ("the same host twice", "Host: app.local\r\n", Nothing),
        ("Connection names Host", "Connection: host, close\r\n", Once("")),
        (
            "Connection names the target",
            "Connection: x-dstack-target-app\r\n",
            Once(""),
        ),
        (
            "an upgrade to HTTP/2",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            Once(""),
        ),
        ("two targets", "x-dstack-target-app: 00\r\n", Nothing),
        (
            "an expectation without a body",
            "Expect: 100-continue\r\n",
            Once(""),
        ),
    ] {
        add(name, format!("GET /PATH HTTP/1.1\r\n{us}{line}\r\n"), may);
    }
    for named in [
        "content-length",
        "Content-Length, close",
        "close, content-length, host, te",
    ] {
        let headers = format!("Connection: {named}\r\nContent-Length: 5\r\n");
        add(
            &format!("Connection names {named}"),
            format!("GET /PATH HTTP/1.1\r\n{us}{headers}\r\nhello"),
            Once("hello"),
        );
    }
    for method in ["GET", "DELETE", "OPTIONS", "POST", "PROPFIND"] {
        let length = format!("Content-Length: {}\r\n", INNER.len());
        add(
            &format!("a request in the body of {method}"),
            format!("{method} /PATH HTTP/1.1\r\n{us}{length}\r\n{INNER}"),
            Once(INNER),
        );
        let chunk = format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len());
        add(
            &format!("a request in a chunk of {method}"),
            format!("{method} /PATH HTTP/1.1\r\n{us}{CHUNKED}\r\n{chunk}"),
            Once(INNER),
        );
    }
    for (name, count, may) in [
        ("many headers", "x: 1\r\n".repeat(20_000), Nothing),
        (
            "a large header",
            format!("x: {}\r\n", "a".repeat(2_000_000)),
            Nothing,
        ),
        (
            "a large name",
            format!("{}: x\r\n", "a".repeat(2_000_000)),
            Nothing,
        ),
    ] {
        add(name, format!("GET /PATH HTTP/1.1\r\n{us}{count}\r\n"), may);
    }
    add(
        "a long path",
        format!("GET /PATH{} HTTP/1.1\r\n{us}\r\n", "a".repeat(2_000_000)),
        Nothing,
    );

    for (line, may) in [
        ("GET  /PATH HTTP/1.1", Perhaps("")),
        ("GET /PATH  HTTP/1.1", Perhaps("")),
        ("GET\t/PATH\tHTTP/1.1", Nothing),
        (" GET /PATH HTTP/1.1", Nothing),
        ("\r\nGET /PATH HTTP/1.1", Perhaps("")),
        ("GET /PATH HTTP/1.1 ", Perhaps("")),
        ("GET /PATH HTTP/1.1\rX: y", Nothing),
        ("GET /PATH HTTP/1.2", Perhaps("")),
        ("GET /PATH HTTP/2.0", Nothing),
        ("GET /PATH HTTP/01.1", Nothing),
        ("GET /PATH http/1.1", Nothing),
        ("GET /PATH HTTP/1.", Nothing),
        ("GET /PATH HTTPS/1.1", Nothing),
        ("GET /PATH", Nothing),
        ("G\u{0}T /PATH HTTP/1.1", Nothing),
        ("G(T /PATH HTTP/1.1", Nothing),
        ("GET /PATH\0 HTTP/1.1", Nothing),
        ("GET /PATH\r\nX HTTP/1.1", Nothing),
        ("GET /PATH x HTTP/1.1", Perhaps("")),
        ("GET PATH HTTP/1.1", Nothing),
        ("GET * HTTP/1.1", Nothing),
        ("GET ?/PATH HTTP/1.1", Nothing),
        ("GET /PATH#fragment HTTP/1.1", Perhaps("")),
        ("GET app.local:80 HTTP/1.1", Nothing),
        ("GET http://app.local/PATH HTTP/1.1", Once("")),
        ("GET http://other.local/PATH HTTP/1.1", Once("")),
        ("GET http://user@other.local/PATH HTTP/1.1", Nothing),
        ("GET http:///PATH HTTP/1.1", Nothing),
        ("GET http://a b/PATH HTTP/1.1", Nothing),
        ("CONNECT app.local:443 HTTP/1.1", Nothing),
        ("CONNECT /PATH HTTP/1.1", Nothing),
        ("PRI * HTTP/2.0", Nothing),
    ] {
        add(&format!("line {line}"), format!("{line}\r\n{us}\r\n"), may);
    }

    for (host, may) in [
        ("app.local", Once("")),
        ("app.local:8443", Once("")),
        ("[::1]:80", Once("")),
        ("", Nothing),
        (" ", Nothing),
        ("a b", Nothing),
        ("user@app.local", Nothing),
        ("app.local/path", Nothing),
        ("app.local?x", Nothing),
        ("app.local#x", Nothing),
        ("app.local:http", Perhaps("")),
        ("app.local:80:80", Nothing),
        ("app.local, other.local", Nothing),
        ("[::1", Nothing),
        ("app.local\0", Nothing),
        ("app.local\u{0b}", Nothing),
        ("http://app.local", Nothing),
    ] {
        add(
            &format!("host {host}"),
            format!("GET /PATH HTTP/1.1\r\nHost: {host}\r\nx-dstack-target-app: {app}\r\n\r\n"),
            may,
        );
    }
    add(
        "no host",
        format!("GET /PATH HTTP/1.1\r\nx-dstack-target-app: {app}\r\n\r\n"),
        Nothing,
    );
    all
}

/// What a client is told: the status of each answer, as far as it came in `patience`.
async fn strike(door: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<String> {
    let mut stream = TcpStream::connect(door).await.expect("the proxy's door");
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let exchange = async {
        // It may be refused before all was written.
        let (_, _) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
    };
    // What is left open waits for more of the request.
    let _ = tokio::time::timeout(patience, exchange).await;
    let text = String::from_utf8_lossy(&answer);
    let answers = text.split("HTTP/1.1 ").skip(1);
    answers.map(|answer| answer.chars().take(3).collect()).collect()
}

/// Sends every attack to `door` at once and compares what the client was told with what arrived: each at most once, whole
/// and clean, and answered exactly when it arrived. Returns what is wrong.
pub async fn mount(door: SocketAddr, is_ours: bool, app: &str, witness: &Witness) -> Vec<String> {
    let attacks = all(app);
    let told = attacks
        .iter()
        .map(|attack| strike(door, &attack.bytes, Duration::from_secs(2)));
    let told = futures_util::future::join_all(told).await;
    let (requests, mut wrong) = {
        let seen = witness.0.lock().expect("the witness");
        (seen.requests.clone(), seen.dirty.clone())
    };
    let mut by_path: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, body) in &requests {
        by_path.entry(path).or_default().push(body);
    }
    for (number, (attack, told)) in attacks.iter().zip(&told).enumerate() {
        let arrived = by_path
            .remove(format!("/attack/{number}").as_str())
            .unwrap_or_default();
        let fits = match (attack.may, arrived.as_slice()) {
            (Nothing | Perhaps(_) | NotOurs, []) => true,
            (NotOurs, [_]) => !is_ours,
            (Once(body) | Perhaps(body), [one]) => *one == body,
            _ => false,
        };
        let good = told.iter().filter(|status| *status == "200").count();
        if !fits || good != arrived.len() {
            wrong.push(format!(
                "{number} {}: {:?}, arrived {arrived:?}, told {told:?}",
                attack.name, attack.may
            ));
        }
    }
    wrong.extend(by_path.keys().map(|path| format!("{path} was never sent")));
    wrong
}

/// A peer or backend that reads requests by the letter and answers each whole one with 200.
#[derive(Clone, Default)]
pub struct Witness(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// Path and body.
    requests: Vec<(String, String)>,
    /// What should never have been sent to anyone.
    dirty: Vec<String>,
}

impl Witness {
    /// Reads one connection to its end.
    pub async fn watch(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut buffer = Vec::new();
        loop {
            match read_request(&mut stream, &mut buffer).await {
                Ok(Some((path, body))) => self.0.lock().expect("the witness").requests.push((path, body)),
                Ok(None) => return,
                Err(what) => return self.0.lock().expect("the witness").dirty.push(what),
            }
            let answered = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await;
            if answered.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

/// The next request; `None` when the connection ends before it is whole, `Err` when it is not as a proxy may send it.
async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<Option<(String, String)>, String> {
    let Some(head) = take_until(stream, buffer, b"\r\n\r\n").await else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&head).into_owned();
    let dirty = |why: &str| Err(format!("{why}: {head:?}"));
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let line: Vec<_> = lines.next().unwrap_or("").split(' ').collect();
    let &[method, path, "HTTP/1.1"] = line.as_slice() else {
        return dirty("the request line");
    };
    if !path.starts_with('/') || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        return dirty("the target");
    }
    let mut headers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else {
            return dirty("a header");
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !name.bytes().all(plain) || value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            return dirty("a header");
        }
        headers.entry(name.to_ascii_lowercase()).or_default().push(value);
    }
    let only = |name: &str| headers.get(name).map(Vec::as_slice).unwrap_or_default();
    let host_is_clean =
        matches!(only("host"), [host] if !host.is_empty() && !host.contains([' ', '@', '/', ',']));
    if !host_is_clean
        || headers
            .keys()
            .any(|name| name.starts_with("x-dstack-target") || name == "upgrade")
    {
        return dirty("the headers");
    }
    let body = match (only("content-length"), only("transfer-encoding")) {
        ([], []) => Some(Vec::new()),
        ([length], []) => match length.parse() {
            Ok(length) => take(stream, buffer, length).await,
            Err(_) => return dirty("the length"),
        },
        ([], ["chunked"]) => {
            let mut body = Vec::new();
            loop {
                let Some(size) = take_until(stream, buffer, b"\r\n").await else {
                    return Ok(None);
                };
                let size = String::from_utf8_lossy(&size).into_owned();
                let Ok(size) = usize::from_str_radix(size.trim_end(), 16) else {
                    return dirty(&format!("the chunk {size:?}"));
                };
                if size == 0 {
                    break;
                }
                let Some(chunk) = take(stream, buffer, size + 2).await else {
                    return Ok(None);
                };
                body.extend(&chunk[..size]);
            }
            let Some(line) = take_until(stream, buffer, b"\r\n").await else {
                return Ok(None);
            };
            if line != b"\r\n" {
                return dirty(&format!("the trailer {:?}", String::from_utf8_lossy(&line)));
            }
            Some(body)
        }
        _ => return dirty("the framing"),
    };
    Ok(body.map(|body| (path.to_owned(), String::from_utf8_lossy(&body).into_owned())))
}

async fn take_until(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    end: &[u8],
) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = buffer.windows(end.len()).position(|window| window == end) {
            return Some(buffer.drain(..at + end.len()).collect());
        }
        more(stream, buffer).await?;
    }
}

async fn take(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, count: usize) -> Option<Vec<u8>> {
    while buffer.len() < count {
        more(stream, buffer).await?;
    }
    Some(buffer.drain(..count).collect())
}

async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}
