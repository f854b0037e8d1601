//! What belongs to one hop and what to all: interim responses, counters, old clients, and messages that break off.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

/// Our side before a peer that, for each request, writes `parts` one after the other and notes what it got.
async fn answering(parts: &'static [&'static str]) -> (OurSide, Peer, Arc<Mutex<Vec<String>>>) {
    let root = Signed::root(&Shape::root());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&heads);
    let peer = Peer::them(&root, move |mut stream, _| {
        let into = Arc::clone(&into);
        async move {
            while let Some(head) = read_head(&mut stream).await {
                into.lock().unwrap().push(String::from_utf8(head).unwrap());
                for part in parts {
                    say(&mut stream, part.as_bytes()).await;
                    tokio::task::yield_now().await;
                }
                if !parts.concat().contains("ok") {
                    return; // Without a goodbye.
                }
            }
        }
    })
    .await;
    (OurSide::start(&root, settings(peer.gateway())).await, peer, heads)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn interim_responses_come_before_the_answer() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n";
    let (us, _peer, _) = answering(Box::leak(Box::new([
        hint,
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        hint,
        OK,
    ])))
    .await;
    let mut client = Client::connect(us.client).await;
    for _ in 0..3 {
        client.send(get("/", "")).await;
        let mut seen = Vec::new();
        loop {
            let (status, headers) = client.head().await.unwrap();
            if status == 200 {
                break;
            }
            seen.push((status, headers));
        }
        // Nobody asked for a 100.
        let link = vec![("link".to_owned(), "</a>".to_owned())];
        assert_eq!(seen, [(103, link.clone()), (102, vec![]), (103, link)]);
        assert_eq!(client.bytes(2).await.unwrap(), b"ok");
    }
    // HTTP/1.0 has none.
    client.send(get("/", "").replace("HTTP/1.1", "HTTP/1.0")).await;
    assert_eq!(client.head().await.unwrap().0, 200);
    us.mesh.shutdown().await;
}

/// A flood of them neither fills memory nor keeps a request from its end.
#[tokio::test]
async fn a_flood_of_interim_responses_is_no_answer() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "a".repeat(1000)).repeat(50);
        while stream.write_all(hints.as_bytes()).await.is_ok() {}
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/", "")).await;
    let answer = timeout(Duration::from_secs(5), client.response(false)).await;
    assert_eq!(answer.expect("in time").unwrap().code(), "bad_response");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn max_forwards_counts_down_and_ends_here() {
    let (us, _peer, heads) = answering(&[OK]).await;
    let mut client = Client::connect(us.client).await;
    for method in ["OPTIONS", "TRACE"] {
        let last = client.call(&request(method, "/", "max-forwards: 0\r\n")).await;
        assert_eq!(last.status, 204);
        assert!(heads.lock().unwrap().is_empty(), "{method} went on");
        client.call(&request(method, "/", "max-forwards: 7\r\n")).await;
        let head = heads.lock().unwrap().pop().unwrap();
        assert!(head.contains("\r\nmax-forwards: 6\r\n"), "{head}");
    }
    // For other methods it means nothing.
    client.call(&get("/", "max-forwards: 0\r\n")).await;
    let head = heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("\r\nmax-forwards: 0\r\n"), "{head}");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn te_is_announced_to_the_next_hop() {
    let (us, _peer, heads) = answering(&[OK]).await;
    call(
        us.client,
        &get("/", "te: gzip, trailers\r\nconnection: te, x-a\r\nx-a: 1\r\n"),
    )
    .await;
    let head = heads.lock().unwrap().pop().unwrap();
    assert!(
        head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"),
        "{head}"
    );
    assert!(!head.contains("x-a"), "{head}");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn old_clients_are_kept_when_they_ask_and_closed_when_not() {
    let (us, _peer, _) = answering(&[OK]).await;
    let mut client = Client::connect(us.client).await;
    let old = |more: &str| get("/", more).replace("HTTP/1.1", "HTTP/1.0");
    for _ in 0..2 {
        let answer = client.call(&old("connection: keep-alive\r\n")).await;
        assert_eq!(
            (answer.text().as_str(), answer.all("connection")),
            ("ok", vec!["keep-alive"])
        );
    }
    assert_eq!(client.call(&old("")).await.text(), "ok");
    assert!(client.bytes(1).await.is_none(), "closed after the answer");
    us.mesh.shutdown().await;
}

/// A client may say that it has sent all, and wait for the answer.
#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::serve(
        acceptor,
        |request: hyper::Request<hyper::body::Incoming>| async move {
            let body = http_body_util::BodyExt::collect(request.into_body())
                .await
                .unwrap()
                .to_bytes();
            tokio::time::sleep(Duration::from_millis(200)).await;
            answer(format!("{} bytes", body.len()))
        },
    )
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let long = "x".repeat(300_000);
    for (bytes, text) in [
        (get("/", ""), "0 bytes"),
        (request("POST", "/", "content-length: 5\r\n") + "hello", "5 bytes"),
        (
            request("POST", "/", "content-length: 300000\r\n") + &long,
            "300000 bytes",
        ),
        (
            request("POST", "/", "transfer-encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
            "5 bytes",
        ),
    ] {
        for _ in 0..3 {
            let mut client = Client::connect(us.client).await;
            client.send(&bytes).await;
            client.stream.shutdown().await.unwrap();
            let response = client.response(false).await;
            assert_eq!(
                response.unwrap_or_else(|| panic!("no answer: {text}")).text(),
                text
            );
            assert!(client.bytes(1).await.is_none(), "and the end");
        }
    }
    us.mesh.shutdown().await;
}

/// Whoever has left for good and whoever has half closed look alike: neither holds a peer for ever.
#[tokio::test]
async fn a_client_that_left_is_not_waited_for_without_end() {
    let root = Signed::root(&Shape::root());
    let (send, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::them(&root, move |mut stream, _| {
        let send = send.clone();
        async move {
            read_head(&mut stream).await.unwrap();
            say(
                &mut stream,
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .await;
            let _ = stream.read(&mut [0]).await;
            send.send(()).unwrap();
        }
    })
    .await;
    let mut wanted = settings(peer.gateway());
    wanted.response_timeout = Duration::from_millis(500);
    wanted.limits.header_timeout = Duration::from_millis(300);
    let us = OurSide::start(&root, wanted).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/events", "")).await;
    assert_eq!(client.head().await.unwrap().0, 200);
    drop(client);
    timeout(Duration::from_secs(5), ends.recv())
        .await
        .expect("the peer is let go");
    us.mesh.shutdown().await;
}

/// Each way to end too early, for each way to be told how long an answer is: none looks whole.
#[tokio::test]
async fn an_answer_that_breaks_off_shows() {
    for head in ["content-length: 10\r\n", "transfer-encoding: chunked\r\n", ""] {
        let body = if head.contains("chunked") {
            "4\r\nhalf\r\n"
        } else {
            "half"
        };
        let parts = vec![format!("HTTP/1.1 200 OK\r\n{head}\r\n").leak() as &str, body];
        // The script ends without close_notify: over TLS that is a truncation whatever the framing.
        let (us, _peer, _) = answering(parts.leak()).await;
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let mut client = Client::connect(us.client).await;
            client.send(get("/", "").replace("HTTP/1.1", version)).await;
            let mut bytes = Vec::new();
            let ended = timeout(Duration::from_secs(3), client.stream.read_to_end(&mut bytes)).await;
            let text = String::from_utf8_lossy(&bytes);
            let reset = ended.expect("an end").is_err();
            let short = text.is_empty()
                || text.contains("content-length: 10")
                || text.contains("chunked") && !text.contains("\r\n0\r\n");
            assert!(reset || short, "{head:?} {version}: {text}");
        }
        us.mesh.shutdown().await;
    }
}

/// The peer must not take what it got of a body for all of it.
#[tokio::test]
async fn an_upload_that_breaks_off_shows() {
    let root = Signed::root(&Shape::root());
    let (send, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::them(&root, move |mut stream, _| {
        let send = send.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body).await;
            send.send((String::from_utf8(head).unwrap(), body)).unwrap();
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    for (headers, bytes, code) in [
        ("content-length: 10\r\n", "half", ""),
        ("transfer-encoding: chunked\r\n", "4\r\nhalf\r\n", ""),
        ("transfer-encoding: chunked\r\n", "4\r\nhalf\r\n5\r\nha", ""),
        (
            "transfer-encoding: chunked\r\n",
            "4\r\nhalf\r\nzz\r\n",
            "bad_request",
        ),
    ] {
        let mut client = Client::connect(us.client).await;
        client.send(request("POST", "/", headers) + bytes).await;
        if code.is_empty() {
            drop(client);
        } else {
            assert_eq!(client.response(false).await.unwrap().code(), code);
        }
        let (head, body) = timeout(Duration::from_secs(3), ends.recv())
            .await
            .expect("an end")
            .unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(
            body.contains("half") && !body.contains("\r\n0\r\n") && body.len() < 20,
            "{head}{body}"
        );
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn answers_that_have_no_body_leave_no_bytes_behind() {
    for (method, answer) in [
        ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nevil",
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"),
    ] {
        let root = Signed::root(&Shape::root());
        let peer = Peer::them(&root, move |mut stream, _| async move {
            while read_head(&mut stream).await.is_some() {
                say(&mut stream, answer.as_bytes()).await;
            }
        })
        .await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        for _ in 0..3 {
            client.send(request(method, "/", "")).await;
            let answer = client.response(true).await.unwrap();
            assert!([200, 204, 304].contains(&answer.status));
            if answer.status == 204 {
                assert!(answer.all("content-length").is_empty(), "{:?}", answer.headers);
            }
        }
        assert_eq!(
            peer.count(),
            3,
            "a connection with bytes left over is not used again"
        );
        us.mesh.shutdown().await;
    }
}
