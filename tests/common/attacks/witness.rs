//! Who notes what arrives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A peer or backend that reads requests by the letter and answers each whole one with 200.
#[derive(Clone, Default)]
pub struct Witness(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    requests: Vec<(String, String)>,
    dirty: Vec<String>,
}

impl Witness {
    /// Path and body of each request so far, and what should never have been sent to anyone.
    pub(super) fn seen(&self) -> (Vec<(String, String)>, Vec<String>) {
        let seen = self.0.lock().expect("the witness");
        (seen.requests.clone(), seen.dirty.clone())
    }

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
