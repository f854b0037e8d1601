//! What passes through the outbound proxy and what does not (RFC 9110, RFC 9112).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::pki::{Shape, Signed};
use crate::kit::*;

/// Our side, and a peer of the right app that answers with what it got.
async fn echoing() -> (OurSide, Peer) {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    (OurSide::start(&root, settings(peer.gateway())).await, peer)
}

/// Our side, and a peer that reads one head and then writes `bytes`, byte for byte.
async fn saying(bytes: &'static [u8]) -> (OurSide, Peer) {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, move |mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            say(&mut stream, bytes).await;
        }
    });
    let peer = peer.await;
    (OurSide::start(&root, settings(peer.gateway())).await, peer)
}

#[tokio::test]
async fn a_call_reaches_the_target_and_comes_back() {
    let (us, peer) = echoing().await;
    let mut client = Client::connect(us.client).await;
    for round in 0..3 {
        let more = "x-dstack-app-id: spoofed\r\nX_Dstack_App_Id: spoofed\r\nx-kept: 1\r\nconnection: x-gone\r\nx-gone: 1\r\n";
        let answer = client.call(&get(&format!("/path/{round}?q=%20"), more)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            answer.text(),
            format!("GET /path/{round}?q=%20 HTTP/1.1\nhost: service.internal\nx-kept: 1\n\n")
        );
    }
    assert_eq!(peer.count(), 1, "one TLS connection for all");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn the_connection_to_the_peer_outlives_clients_that_close_theirs() {
    let (us, peer) = echoing().await;
    for _ in 0..8 {
        let answer = call(us.client, &get("/", "connection: close\r\n")).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("connection"), "{}", answer.text());
    }
    // Each worker has its own pool.
    let workers = std::thread::available_parallelism().unwrap().get().min(8);
    assert!(peer.count() <= workers, "{} connections", peer.count());
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn every_method_and_its_body_pass() {
    let (us, _peer) = echoing().await;
    let mut client = Client::connect(us.client).await;
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "PROPFIND",
    ] {
        let answer = client
            .call(&(request(method, "/x", "content-length: 5\r\n") + "hello"))
            .await;
        let text = answer.text();
        assert!(text.starts_with(&format!("{method} /x HTTP/1.1\n")), "{text}");
        assert!(
            text.contains("content-length: 5") && text.ends_with("\n\nhello"),
            "{text}"
        );

        let chunked =
            request(method, "/x", "transfer-encoding: chunked\r\n") + "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let text = client.call(&chunked).await.text();
        assert!(
            text.contains("transfer-encoding: chunked") && text.ends_with("\n\nabcde"),
            "{text}"
        );

        let text = client.call(&request(method, "/x", "")).await.text();
        assert!(
            text.starts_with(&format!("{method} /x")) && text.ends_with("\n\n"),
            "{text}"
        );
    }
    let star = client.call(&request("OPTIONS", "*", "")).await.text();
    assert!(star.starts_with("OPTIONS * "), "{star}");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn head_has_no_body_and_keeps_its_length() {
    let (us, peer) = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: x\r\n\r\n").await;
    let mut client = Client::connect(us.client).await;
    for _ in 0..3 {
        let answer = client.call(&request("HEAD", "/", "")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.all("content-length"), ["1234"]);
    }
    assert_eq!(peer.count(), 1, "the connection was reused");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn statuses_and_repeated_headers_pass_and_hop_by_hop_ones_do_not() {
    let (us, _peer) = saying(
        b"HTTP/1.1 503 Busy\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: timeout=5\r\n\
          Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\ncontent-length: 4\r\n\r\nbusy",
    )
    .await;
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.text(), "busy");
    for gone in ["keep-alive", "connection", "x-hop", "proxy-authenticate"] {
        assert!(answer.all(gone).is_empty(), "{gone}");
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn answers_without_a_body_and_with_an_unknown_length_pass() {
    for (bytes, status, body) in [
        (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], 204, ""),
        (b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", 304, ""),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            200,
            "abc",
        ),
        (
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            200,
            "ok",
        ),
    ] {
        let (us, _peer) = saying(bytes).await;
        let mut client = Client::connect(us.client).await;
        for _ in 0..2 {
            let answer = client.call(&get("/", "")).await;
            assert_eq!((answer.status, answer.text().as_str()), (status, body));
        }
        us.mesh.shutdown().await;
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let root = Signed::root(&Shape::root());
    let received = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&received);
    let peer = Peer::them(&root, move |mut stream, _| {
        let into = Arc::clone(&into);
        async move {
            loop {
                let mut request = match read_head(&mut stream).await {
                    Some(head) => head,
                    None => return,
                };
                while !request.ends_with(b"\r\n\r\n") || !request.windows(3).any(|w| w == b"\n0\r") {
                    request.push(stream.read_u8().await.unwrap());
                }
                *into.lock().unwrap() = request;
                let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n";
                say(&mut stream, answer).await;
            }
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;

    let mut client = Client::connect(us.client).await;
    let head = "transfer-encoding: chunked\r\ntrailer: x-check\r\nte: trailers\r\nconnection: te\r\n";
    for _ in 0..2 {
        let answer = client
            .call(&(request("POST", "/", head) + "3\r\nabc\r\n0\r\nx-check: 7\r\n\r\n"))
            .await;
        assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())]);
        let seen = String::from_utf8(received.lock().unwrap().clone()).unwrap();
        assert!(seen.contains("\r\n0\r\nx-check: 7\r\n\r\n"), "{seen}");
    }
    assert_eq!(peer.count(), 1, "the connection was reused after trailers");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn an_expectation_waits_for_the_peer() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.unwrap()).unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        // Nothing of the body may come before we ask for it.
        let early = tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await;
        assert!(early.is_err(), "the body came unasked");
        say(&mut stream, b"HTTP/1.1 100 Continue\r\n\r\n").await;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            .await
            .unwrap();
        say(&mut stream, &body).await;
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    client
        .send(request(
            "PUT",
            "/",
            "expect: 100-continue\r\ncontent-length: 5\r\n",
        ))
        .await;
    assert_eq!(client.head().await.unwrap().0, 100);
    client.send("hello").await;
    assert_eq!(client.response(false).await.unwrap().text(), "hello");

    // A peer that refuses does so without having received the body.
    let (us, _peer) = saying(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await;
    let mut client = Client::connect(us.client).await;
    client
        .send(request(
            "PUT",
            "/",
            "expect: 100-continue\r\ncontent-length: 5\r\n",
        ))
        .await;
    assert_eq!(client.head().await.unwrap().0, 413);
}

#[tokio::test]
async fn old_clients_and_absolute_targets_are_understood() {
    let (us, _peer) = echoing().await;
    let app = format!("x-dstack-target-app: {}\r\n", them());

    let answer = call(us.client, &format!("GET /old HTTP/1.0\r\nhost: h\r\n{app}\r\n")).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.text().starts_with("GET /old HTTP/1.1\nhost: h\n"),
        "{}",
        answer.text()
    );
    assert!(answer.all("transfer-encoding").is_empty());

    let answer = call(us.client, &format!("GET /old HTTP/1.0\r\n{app}\r\n")).await;
    assert!(answer.text().contains("host: 127.0.0.1:"), "{}", answer.text());

    let answer = call(
        us.client,
        &format!("GET http://named.internal:81/p?q HTTP/1.1\r\nhost: other\r\n{app}\r\n"),
    )
    .await;
    assert_eq!(answer.text(), "GET /p?q HTTP/1.1\nhost: named.internal:81\n\n");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let (us, peer) = echoing().await;
    let app = format!("x-dstack-target-app: {}\r\n", them());
    for (what, bytes) in [
        ("two hosts", request("GET", "/", "host: b\r\n")),
        ("no host", format!("GET / HTTP/1.1\r\n{app}\r\n")),
        ("no path", format!("GET name HTTP/1.1\r\nhost: h\r\n{app}\r\n")),
        (
            "two lengths",
            request("POST", "/", "content-length: 1\r\ncontent-length: 2\r\n") + "ab",
        ),
        (
            "a list of lengths",
            request("POST", "/", "content-length: 1, 1\r\n") + "a",
        ),
        (
            "signed length",
            request("POST", "/", "content-length: +1\r\n") + "a",
        ),
        (
            "chunked twice",
            request("POST", "/", "transfer-encoding: chunked, chunked\r\n") + "0\r\n\r\n",
        ),
        (
            "another coding",
            request("POST", "/", "transfer-encoding: gzip, chunked\r\n") + "0\r\n\r\n",
        ),
        (
            "unknown coding",
            request("POST", "/", "transfer-encoding: xchunked\r\n") + "0\r\n\r\n",
        ),
        ("folded header", request("GET", "/", "x-a: 1\r\n 2\r\n")),
        ("space before colon", request("GET", "/", "x-a : 1\r\n")),
        ("nul in a header", request("GET", "/", "x-a: \0\r\n")),
        (
            "user in the target",
            format!("GET http://u@h/ HTTP/1.1\r\nhost: h\r\n{app}\r\n"),
        ),
        (
            "CONNECT",
            format!("CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n{app}\r\n"),
        ),
        ("many headers", get("/", &"x-a: 1\r\n".repeat(200))),
        (
            "large headers",
            get("/", &format!("x-a: {}\r\n", "a".repeat(200_000))),
        ),
        ("long path", get(&format!("/{}", "a".repeat(200_000)), "")),
    ] {
        let mut client = Client::connect(us.client).await;
        let _ = client.stream.write_all(bytes.as_bytes()).await;
        // A parser that gives up may close at once, which a client that still writes sees as a reset.
        let status = client.head().await.map(|head| head.0);
        assert!(matches!(status, None | Some(400..=499)), "{what}: {status:?}");
    }
    assert_eq!(peer.count(), 0, "nothing went out");

    // What the parser settles goes out settled: a coding beats a length, equal lengths are one.
    for both in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    ] {
        let text = call(us.client, &(request("POST", "/", both) + "1\r\na\r\n0\r\n\r\n"))
            .await
            .text();
        assert!(
            text.contains("transfer-encoding: chunked") && !text.contains("content-length"),
            "{text}"
        );
    }
    let equal = "content-length: 1\r\ncontent-length: 1\r\n";
    let text = call(us.client, &(request("POST", "/", equal) + "a")).await.text();
    assert_eq!(text.matches("content-length: 1").count(), 1, "{text}");

    // A chunk that lies about its size ends the request, and nothing after it is a request.
    let bad = request("POST", "/", "transfer-encoding: chunked\r\n")
        + "zz\r\nabc\r\n0\r\n\r\n"
        + &get("/smuggled", "");
    let mut client = Client::connect(us.client).await;
    client.send(bad).await;
    let first = client.response(false).await;
    assert!(first.is_none_or(|first| first.status >= 400));
    assert!(client.response(false).await.is_none());
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_body_that_the_peer_does_not_read_never_becomes_the_next_request() {
    // Answers at once, before the body, and notes what comes on each connection.
    let root = Signed::root(&Shape::root());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&heads);
    let peer = Peer::them(&root, move |mut stream, _| {
        let into = Arc::clone(&into);
        async move {
            while let Some(head) = read_head(&mut stream).await {
                into.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&head).into_owned());
                say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    for method in ["GET", "DELETE", "POST"] {
        let mut client = Client::connect(us.client).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
        let length = format!("content-length: {}\r\n", smuggled.len() + 10);
        client.send(request(method, "/first", &length)).await;
        client.send(smuggled).await;
        assert_eq!(client.response(false).await.unwrap().text(), "ok", "{method}");
        let second = call(us.client, &get("/second", "")).await;
        assert_eq!(second.text(), "ok", "{method}");
    }
    let heads = heads.lock().unwrap().clone();
    let seconds = heads
        .iter()
        .filter(|head| head.starts_with("GET /second "))
        .count();
    assert_eq!(seconds, 3, "{heads:#?}");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn answers_that_are_not_http_are_502() {
    for (bytes, code) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "bad_response"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "bad_response",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "bad_response",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "bad_response",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "bad_response",
        ),
    ] {
        let (us, _peer) = saying(bytes).await;
        let answer = call(us.client, &get("/", "")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, code),
            "{}",
            String::from_utf8_lossy(bytes)
        );
        us.mesh.shutdown().await;
    }
}

#[tokio::test]
async fn bad_targets_are_400_and_go_nowhere() {
    let (us, peer) = echoing().await;
    for headers in [
        "x-dstack-target-app: 127.0.0.1:18443/injected?\r\n".to_owned(),
        format!("x-dstack-target-app: {0}\r\nx-dstack-target-app: {0}\r\n", them()),
        format!(
            "x-dstack-target-app: {}\r\nx-dstack-target-port: 443/x\r\n",
            them()
        ),
        "x-dstack-target-port: 443\r\n".to_owned(),
    ] {
        let answer = call(us.client, &format!("GET / HTTP/1.1\r\nhost: h\r\n{headers}\r\n")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_target"),
            "{headers}"
        );
        assert_eq!(answer.all("content-type"), ["application/json"]);
    }
    assert_eq!(peer.count(), 0);
    us.mesh.shutdown().await;
}

/// Damaged requests, by the hundred: none panics a worker, hangs it, or stands in the way of the next good one.
#[tokio::test]
async fn damaged_requests_hurt_nobody_else() {
    let (us, _peer) = echoing().await;
    let good = request(
        "POST",
        "/path?q",
        "transfer-encoding: chunked\r\nexpect: 100-continue\r\n",
    ) + "3\r\nabc\r\n0\r\n\r\n";
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..10 {
        let damaged = (0..50).map(|_| {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] = random.u8(..),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            let addr = us.client;
            async move {
                let mut client = Client::connect(addr).await;
                client.send(&bytes).await;
                // What is incomplete gets no answer: its client leaves.
                let answer = tokio::time::timeout(Duration::from_millis(200), client.response(false)).await;
                if let Ok(Some(answer)) = answer {
                    assert_ne!(answer.status, 500, "{}", String::from_utf8_lossy(&bytes));
                }
            }
        });
        futures_util::future::join_all(damaged.collect::<Vec<_>>()).await;
        assert_eq!(call(us.client, &get("/", "")).await.status, 200);
    }
    us.mesh.shutdown().await;
}
