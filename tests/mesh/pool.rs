//! Connections: reused, retried, replaced.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A peer that answers `lives[n]` requests on its n-th connection, takes one more head and then breaks off.
async fn mortal(root: &Signed, lives: &'static [usize]) -> (Peer, Arc<Mutex<Vec<String>>>) {
    let acceptor = Certificate::of(root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let heads = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&heads);
    let peer = Peer::scripted(acceptor, move |mut stream, number| {
        let into = Arc::clone(&into);
        async move {
            let mut left = lives.get(number).copied().unwrap_or(usize::MAX);
            while let Some(head) = read_head(&mut stream).await {
                into.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&head).into_owned());
                if left == 0 {
                    return;
                }
                left -= 1;
                say(&mut stream, OK).await;
            }
        }
    });
    (peer.await, heads)
}

#[tokio::test]
async fn an_idempotent_request_survives_a_stale_connection_once() {
    let root = Signed::root(&Shape::root());
    let (peer, heads) = mortal(&root, &[1]).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&get("/first", "")).await.status, 200);
    assert_eq!(client.call(&get("/second", "")).await.status, 200);
    assert_eq!(peer.count(), 2);
    assert_eq!(
        heads.lock().unwrap().len(),
        3,
        "the second request went out twice"
    );

    let (peer, heads) = mortal(&root, &[1, 0]).await;
    us.mesh.update(settings(peer.gateway())).await.unwrap();
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&get("/first", "")).await.status, 200);
    let answer = client.call(&get("/second", "")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "peer_closed"));
    assert_eq!(heads.lock().unwrap().len(), 3, "no third time");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn nothing_else_is_sent_twice() {
    let root = Signed::root(&Shape::root());
    for second in [
        request("POST", "/second", ""),
        request("POST", "/second", "content-length: 1\r\n") + "x",
        request("PUT", "/second", "content-length: 1\r\n") + "x",
        request("PATCH", "/second", ""),
    ] {
        let (peer, heads) = mortal(&root, &[1]).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        assert_eq!(client.call(&get("/first", "")).await.status, 200);
        let answer = client.call(&second).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "peer_closed"),
            "{second}"
        );
        assert_eq!(heads.lock().unwrap().len(), 2, "{second}");
        us.mesh.shutdown().await;
    }
    // On new connections a GET is tried twice, and a POST once.
    for (request, times) in [(get("/", ""), 2), (request("POST", "/", ""), 1)] {
        let (peer, heads) = mortal(&root, &[0, 0, 0]).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        assert_eq!(call(us.client, &request).await.code(), "peer_closed");
        assert_eq!(heads.lock().unwrap().len(), times);
        us.mesh.shutdown().await;
    }
}

/// Half an answer must not look like a whole one, and must not be asked for again.
#[tokio::test]
async fn a_broken_answer_shows_as_broken() {
    let root = Signed::root(&Shape::root());
    for half in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let peer = Peer::them(&root, move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(half).await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        client.send(get("/", "")).await;
        assert!(
            client.response(false).await.is_none(),
            "the truncation was hidden"
        );
        us.mesh.shutdown().await;
    }
    // Part of a head on a reused connection: no retry.
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let peer = Peer::them(&root, move |mut stream, _| {
        let counter = Arc::clone(&counter);
        async move {
            while read_head(&mut stream).await.is_some() {
                if counter.fetch_add(1, Ordering::SeqCst) > 0 {
                    stream.write_all(b"HTTP/1.1 200 O").await.unwrap();
                    stream.shutdown().await.unwrap();
                    return;
                }
                say(&mut stream, OK).await;
            }
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&get("/", "")).await.status, 200);
    assert_eq!(client.call(&get("/", "")).await.code(), "peer_closed");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn bytes_nobody_asked_for_poison_only_their_connection() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            stream.write_all(OK).await.unwrap();
            say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await;
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    for _ in 0..5 {
        assert_eq!(client.call(&get("/", "")).await.text(), "ok");
    }
    assert_eq!(peer.count(), 5, "no connection was used again");
    us.mesh.shutdown().await;
}

/// The timer of a pooled connection runs on from earlier requests: it must neither fire early nor not at all.
#[tokio::test]
async fn a_reused_connection_keeps_time_for_each_request() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        for round in 0.. {
            if read_head(&mut stream).await.is_none() || round == 4 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
            say(&mut stream, OK).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    })
    .await;
    let mut wanted = settings(peer.gateway());
    wanted.response_timeout = Duration::from_millis(400);
    let us = OurSide::start(&root, wanted).await;
    let mut client = Client::connect(us.client).await;
    for round in 0..4 {
        assert_eq!(client.call(&get("/", "")).await.status, 200, "round {round}");
    }
    let begin = Instant::now();
    assert_eq!(client.call(&get("/", "")).await.code(), "response_timeout");
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(390)..Duration::from_millis(900)).contains(&took),
        "{took:?}"
    );
    assert_eq!(peer.count(), 1);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = |listener: TcpListener| {
        let acceptor = acceptor.clone();
        async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                while read_head(&mut stream).await.is_some() {
                    say(&mut stream, OK).await;
                }
            }
        }
    };
    let us = OurSide::start(&root, settings(fixed(addr))).await;
    let mut client = Client::connect(us.client).await;
    let first = tokio::spawn(serve(listener));
    assert_eq!(client.call(&get("/", "")).await.status, 200);
    first.abort();
    let _ = first.await;
    assert_eq!(client.call(&get("/", "")).await.code(), "connect_refused");

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    let second = tokio::spawn(serve(socket.listen(16).unwrap()));
    assert_eq!(client.call(&get("/", "")).await.status, 200);
    second.abort();
    us.mesh.shutdown().await;
}

/// Far more targets than are kept: none is refused for the others' sake, and the pool does not grow without end.
#[tokio::test]
async fn thousands_of_targets() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    for port in 1..=3000 {
        if port % 500 == 0 {
            let more = format!("x-dstack-target-port: {port}\r\n");
            assert_eq!(client.call(&get("/", &more)).await.status, 200);
        }
        // A slot is made before the gateway is reached; without TLS it costs least.
        let more = format!("x-dstack-target-port: {port}\r\nx-dstack-target-use-tls: 0\r\n");
        let request = get("/", &more).replace("HTTP/1.1\r\nHost: service.internal", "HTTP/1.1");
        assert_eq!(client.call(&request).await.status, 400, "no host");
    }
    us.mesh.shutdown().await;
}
