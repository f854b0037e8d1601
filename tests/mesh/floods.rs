//! HTTP/2 written by hand: what a well-kept client library would never send.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literals without an index (RFC 7541 §6.2.2), all short.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            assert!(text.len() < 127, "{text}");
            bytes.extend(text.bytes());
        }
    }
    bytes
}

/// A connection on which the preface and settings were sent.
async fn connect(us: &OurSide) -> TcpStream {
    let mut stream = TcpStream::connect(us.client).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The kinds of frames that come, up to the first that says how stream 1 ended; the end of the connection is GOAWAY.
async fn outcome(stream: &mut TcpStream) -> u8 {
    let read = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return GOAWAY;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return GOAWAY;
            }
            if matches!(head[3], HEADERS | RST_STREAM | GOAWAY) {
                // `:status: 200` is one byte (RFC 7541 appendix A).
                return if head[3] == HEADERS && payload[0] == 0x88 {
                    DATA
                } else {
                    head[3]
                };
            }
        }
    };
    timeout(Duration::from_secs(5), read).await.expect("an outcome")
}

/// Our side, and a peer that notes what came whole.
async fn noting() -> (OurSide, Arc<Mutex<Vec<String>>>) {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let peer = Peer::serve(acceptor, move |request: Request<Incoming>| {
        let into = Arc::clone(&into);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            if http_body_util::BodyExt::collect(request.into_body())
                .await
                .is_ok()
            {
                into.lock().unwrap().push(line);
            }
            answer("ok")
        }
    })
    .await;
    (OurSide::start(&root, settings(peer.gateway())).await, seen)
}

#[tokio::test]
async fn malformed_requests_are_refused_and_nothing_goes_out() {
    let (us, seen) = noting().await;
    let app = them();
    let target = ("x-dstack-target-app", app.as_str());
    let [method, scheme, path, authority] = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/p"),
        (":authority", "app.local"),
    ];
    let good = [method, scheme, path, authority, target];
    let plus = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    let mut cases = vec![
        vec![method, scheme, authority, target],
        vec![scheme, path, authority, target],
        vec![method, scheme, path, target, authority],
        vec![method, scheme, path, path, authority, target],
        vec![method, scheme, path, authority, authority, target],
        vec![method, scheme, path, authority, (":evil", "1"), target],
        vec![method, scheme, path, (":authority", "u@app.local"), target],
        vec![method, scheme, path, (":authority", "app.local/x"), target],
        vec![method, scheme, path, (":authority", "app local"), target],
        vec![method, scheme, path, target],
        vec![(":method", "P ST"), scheme, path, authority, target],
        vec![(":method", "CONNECT"), authority, target],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            scheme,
            path,
            authority,
            target,
        ],
    ];
    for bad in ["", "p", "*", "/a b", "/a\r\nx: y", "/a\0", "http://evil/"] {
        cases.push(vec![method, scheme, (":path", bad), authority, target]);
    }
    for more in [
        &[("connection", "close")][..],
        &[("connection", "x-a"), ("x-a", "1")],
        &[("keep-alive", "timeout=5")],
        &[("proxy-connection", "keep-alive")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "h2c")],
        &[("te", "gzip")],
        &[("X-Upper", "1")],
        &[("x a", "1")],
        &[("", "1")],
        &[("x-a", "1\r\nx-b: 2")],
        &[("x-a", "1\n")],
        &[("x-a", "\0")],
        &[("content-length", "5")],
        &[("content-length", "+0")],
        &[("content-length", "0"), ("content-length", "5")],
    ] {
        cases.push(plus(more));
    }
    for headers in &cases {
        let mut stream = connect(&us).await;
        let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(headers));
        stream.write_all(&request).await.unwrap();
        assert_ne!(outcome(&mut stream).await, DATA, "{headers:?}");
    }
    // More and fewer bytes than were announced.
    for (length, data) in [("2", "hello"), ("9", "hello")] {
        let mut stream = connect(&us).await;
        let headers = block(&[&good[..], &[("content-length", length)]].concat());
        stream
            .write_all(&frame(HEADERS, END_HEADERS, 1, &headers))
            .await
            .unwrap();
        stream
            .write_all(&frame(DATA, END_STREAM, 1, data.as_bytes()))
            .await
            .unwrap();
        assert_ne!(outcome(&mut stream).await, DATA, "{length}");
    }
    assert_eq!(
        *seen.lock().unwrap(),
        Vec::<String>::new(),
        "nothing arrived whole"
    );

    // Of two names it is the one in `:authority`.
    let mut stream = connect(&us).await;
    let headers = block(&plus(&[("host", "other.local")]));
    stream
        .write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers))
        .await
        .unwrap();
    assert_eq!(outcome(&mut stream).await, DATA);
    assert_eq!(*seen.lock().unwrap(), ["POST https://app.local/p"]);
    us.mesh.shutdown().await;
}

/// Each flood costs its own connection and nobody else's.
#[tokio::test]
async fn floods_end_their_connection() {
    let (us, _) = noting().await;
    let app = them();
    let headers = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "app.local"),
        ("x-dstack-target-app", &app),
    ]);
    let resets = |stream: u32| {
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &headers),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    };
    let many: Vec<u8> = (0..20_000).flat_map(|n| resets(2 * n + 1)).collect();
    let filler = block(&[("x-a", &"a".repeat(100))]).repeat(100);
    let mut endless = frame(HEADERS, 0, 1, &headers);
    (0..2_000).for_each(|_| endless.extend(frame(CONTINUATION, 0, 1, &filler)));
    let mut empty = frame(HEADERS, 0, 1, &headers);
    (0..200_000).for_each(|_| empty.extend(frame(CONTINUATION, 0, 1, &[])));
    for (name, bytes) in [
        ("resets", many),
        ("continuations", endless),
        ("empty continuations", empty),
    ] {
        let mut stream = connect(&us).await;
        let (mut read, mut write) = stream.split();
        let mut sink = Vec::new();
        let ended = timeout(Duration::from_secs(10), async {
            let _ = tokio::join!(write.write_all(&bytes), read.read_to_end(&mut sink));
        });
        assert!(ended.await.is_ok(), "{name}: the connection stays");
        assert_eq!(call(us.client, &get("/", "")).await.text(), "ok", "{name}");
    }
    us.mesh.shutdown().await;
}
