//! Long ways: streams, tunnels, events.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

/// Takes any upgrade and echoes.
async fn tunnelling(root: &Signed) -> Peer {
    let acceptor = Certificate::of(root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    Peer::scripted(acceptor, |mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.unwrap()).unwrap();
        let refuses = !head.contains("upgrade: websocket") || !head.contains("connection: upgrade");
        if refuses || !head.contains("sec-websocket-key: k") {
            let answer = b"HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n";
            say(&mut stream, answer).await;
            return;
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: a\r\n\r\nfirst";
        say(&mut stream, answer.as_bytes()).await;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            say(&mut stream, &buffer[..count]).await;
        }
        let _ = stream.write_all(b"last").await;
        let _ = stream.shutdown().await;
    })
    .await
}

const ASK: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";

#[tokio::test]
async fn upgrades_become_tunnels_with_half_close() {
    let root = Signed::root(&Shape::root());
    let peer = tunnelling(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/ws", ASK)).await;
    let (status, headers) = client.head().await.unwrap();
    assert_eq!(status, 101);
    for expected in [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-accept", "a"),
    ] {
        assert!(
            headers.iter().any(|(n, v)| (n.as_str(), v.as_str()) == expected),
            "{expected:?} {headers:?}"
        );
    }
    assert_eq!(client.bytes(5).await.unwrap(), b"first");
    for size in [1, 1000, 100_000] {
        let message = vec![7; size];
        client.send(&message).await;
        assert_eq!(client.bytes(size).await.unwrap(), message);
    }
    client.stream.shutdown().await.unwrap();
    assert_eq!(
        client.bytes(4).await.unwrap(),
        b"last",
        "the other direction goes on"
    );
    assert!(client.bytes(1).await.is_none());

    // Declined: an ordinary answer.
    let answer = call(
        us.client,
        &get("/ws", "Connection: Upgrade\r\nUpgrade: other\r\n"),
    )
    .await;
    assert_eq!(answer.status, 426);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_tunnel_ends_with_the_drain() {
    let root = Signed::root(&Shape::root());
    let peer = tunnelling(&root).await;
    let mut wanted = settings(peer.gateway());
    wanted.drain_timeout = Duration::from_millis(500);
    let us = OurSide::start(&root, wanted).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/ws", ASK)).await;
    assert_eq!(client.head().await.unwrap().0, 101);
    assert_eq!(client.bytes(5).await.unwrap(), b"first");
    let begin = Instant::now();
    let shutdown = tokio::spawn(us.mesh.shutdown());
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send("still here").await;
    assert_eq!(client.bytes(10).await.unwrap(), b"still here");
    assert!(client.bytes(1).await.is_none());
    shutdown.await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(450));
}

#[tokio::test]
async fn a_tunnel_outlives_the_move_of_its_listener() {
    let root = Signed::root(&Shape::root());
    let peer = tunnelling(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/ws", ASK)).await;
    assert_eq!(client.head().await.unwrap().0, 101);
    assert_eq!(client.bytes(5).await.unwrap(), b"first");
    let mut moved = settings(peer.gateway());
    moved.client_listen = "127.0.0.2:0".parse().unwrap();
    us.mesh.update(moved).await.unwrap();
    us.mesh.retire().await;
    let begin = Instant::now();
    while tokio::net::TcpStream::connect(us.client).await.is_ok() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the old port stays open"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than a stop would leave it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send("still here").await;
    assert_eq!(client.bytes(10).await.unwrap(), b"still here");
    us.mesh.shutdown().await;
    assert!(client.bytes(1).await.is_none(), "a stop ends it");
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        for _ in 0..5 {
            say(&mut stream, b"9\r\ndata: x\n\n\r\n").await;
            // The next one only after the client has this one.
            assert_eq!(stream.read_u8().await.unwrap(), b'n');
        }
        say(&mut stream, b"0\r\n\r\n").await;
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    client
        .send(request("POST", "/events", "content-length: 5\r\n"))
        .await;
    assert_eq!(client.head().await.unwrap().0, 200);
    for _ in 0..5 {
        assert_eq!(client.bytes(14).await.unwrap(), b"9\r\ndata: x\n\n\r\n");
        client.send("n").await;
    }
    assert_eq!(client.bytes(5).await.unwrap(), b"0\r\n\r\n");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_upload_and_download_along() {
    let root = Signed::root(&Shape::root());
    let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::them(&root, move |mut stream, _| {
        let ends = ends.clone();
        async move {
            let head = String::from_utf8(read_head(&mut stream).await.unwrap()).unwrap();
            if head.starts_with("GET") {
                let chunk = [b"1000\r\n".to_vec(), vec![0; 4096], b"\r\n".to_vec()].concat();
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await;
                while stream.write_all(&chunk).await.is_ok() {}
            } else {
                let mut sink = vec![0; 65536];
                while let Ok(1..) = stream.read(&mut sink).await {}
            }
            ends.send(head).unwrap();
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    for request in [
        get("/down", ""),
        request("PUT", "/up", "content-length: 1000000\r\n"),
    ] {
        let mut client = Client::connect(us.client).await;
        client.send(&request).await;
        if request.starts_with("PUT") {
            client.send(vec![0; 10_000]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        } else {
            client.head().await.unwrap();
        }
        drop(client);
        let head = tokio::time::timeout(Duration::from_secs(5), ended.recv())
            .await
            .expect("the peer waits on");
        assert!(request.starts_with(&head.unwrap()[..3]));
    }
    us.mesh.shutdown().await;
}
