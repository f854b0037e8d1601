//! What one client or peer may take: time, room, connections. Every limit is a key, and an edit holds at once.

use std::time::{Duration, Instant};

use dstack_vpc::mesh::MeshSettings;
use dstack_vpc::spec::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::kit::pki::{Shape, Signed};
use crate::kit::*;

/// Our side before a peer that answers what it got, with these limits.
async fn limited(change: impl FnOnce(&mut Limits)) -> (OurSide, Peer) {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    (OurSide::start(&root, with(&peer, change)).await, peer)
}

fn with(peer: &Peer, change: impl FnOnce(&mut Limits)) -> MeshSettings {
    let mut wanted = settings(peer.gateway());
    change(&mut wanted.limits);
    wanted
}

/// How long the connection of a client stays open that sends this, byte by byte and then nothing.
async fn cut_after(us: &OurSide, bytes: &str) -> Duration {
    let mut client = Client::connect(us.client).await;
    let begin = Instant::now();
    for byte in bytes.bytes() {
        // Each arrives by itself.
        if client.stream.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), client.stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "{bytes:?} was never cut");
    begin.elapsed()
}

#[tokio::test]
async fn silent_and_slow_heads_are_cut_and_the_limit_is_live() {
    let (us, peer) = limited(|limits| limits.header_timeout = Duration::from_secs(60)).await;
    let short = Duration::from_millis(400);
    us.mesh
        .update(with(&peer, |limits| limits.header_timeout = short))
        .await
        .unwrap();
    // The preface of HTTP/2 is where no parser looks at a clock.
    let slow = format!("GET / HTTP/1.1\r\nhost: h\r\n{}", "x: y\r\n".repeat(50));
    for bytes in ["", "G", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM", &slow] {
        let took = cut_after(&us, bytes).await;
        assert!((short * 3 / 4..short * 4).contains(&took), "{bytes:?}: {took:?}");
    }
    // Between two requests as well.
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&get("/", "")).await.status, 200);
    let ended = timeout(short * 4, client.head()).await;
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    us.mesh.shutdown().await;
}

/// Bodies may take as long as they like while they move, whoever is slow.
#[tokio::test]
async fn what_stands_still_is_cut_and_what_moves_is_not() {
    let stall = Duration::from_millis(600);
    let (us, _echo) = limited(|limits| {
        limits.stall_timeout = stall;
        limits.header_timeout = Duration::from_millis(300);
    })
    .await;
    // A slow upload, twice as long as the limit.
    let mut client = Client::connect(us.client).await;
    client.send(request("POST", "/", "content-length: 12\r\n")).await;
    for _ in 0..12 {
        sleep(stall / 6).await;
        client.send("x").await;
    }
    assert!(
        client
            .response(false)
            .await
            .unwrap()
            .text()
            .ends_with("xxxxxxxxxxxx")
    );
    // One that stops.
    let mut client = Client::connect(us.client).await;
    client
        .send(request("POST", "/", "content-length: 12\r\n\r\nx"))
        .await;
    let begin = Instant::now();
    assert!(
        timeout(stall * 5, client.head())
            .await
            .expect("it was cut")
            .is_none()
    );
    assert!(begin.elapsed() >= stall, "{:?}", begin.elapsed());

    // A peer that stops in the middle of its answer.
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "our end is closed");
    })
    .await;
    let us = OurSide::start(
        &root,
        with(&peer, |limits| {
            limits.stall_timeout = stall;
            limits.header_timeout = Duration::from_millis(300);
        }),
    )
    .await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/", "")).await;
    let answer = timeout(stall * 5, client.response(false))
        .await
        .expect("it was cut");
    assert!(answer.is_none());
    us.mesh.shutdown().await;
}

/// The time for a head begins when the answer before it has ended.
#[tokio::test]
async fn an_answer_without_a_known_end_may_take_longer_than_a_head() {
    let header = Duration::from_millis(300);
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, move |mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        for _ in 0..12 {
            sleep(header / 4).await;
            say(&mut stream, b"1\r\nx\r\n").await;
        }
        say(&mut stream, b"0\r\n\r\n").await;
        sleep(header * 4).await;
    })
    .await;
    let us = OurSide::start(&root, with(&peer, |limits| limits.header_timeout = header)).await;
    let mut client = Client::connect(us.client).await;
    client.send(get("/", "")).await;
    let answer = client.response(false).await.expect("it came whole");
    assert_eq!(answer.text(), "x".repeat(12));
    let ended = timeout(header * 4, client.head()).await;
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn heads_are_limited_in_bytes_and_in_number() {
    let (us, peer) = limited(|limits| {
        limits.headers = 20;
        limits.header_kib = 16;
    })
    .await;
    // Our own, the host and the target, count too.
    let of = |count: usize| get("/", &"x-a: 1\r\n".repeat(count));
    assert_eq!(call(us.client, &of(18)).await.status, 200);
    assert_eq!(call(us.client, &of(19)).await.status, 431);
    let large = |size: usize| get("/", &format!("x-a: {}\r\n", "a".repeat(size)));
    assert_eq!(call(us.client, &large(12_000)).await.status, 200);
    assert_eq!(call(us.client, &large(20_000)).await.status, 431);
    us.mesh.update(with(&peer, |_| {})).await.unwrap();
    assert_eq!(call(us.client, &large(20_000)).await.status, 200);
    assert_eq!(call(us.client, &of(60)).await.status, 200);
    us.mesh.shutdown().await;
}

/// Whoever opens connections and says nothing leaves no room for others, and they are told so; then it is theirs.
#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let (us, _peer) = limited(|limits| {
        limits.connections = 16;
        limits.header_timeout = Duration::from_millis(1500);
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(Client::connect(us.client).await);
    }
    let mut refused = Client::connect(us.client).await;
    let answer = refused.response(false).await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "too_many_connections")
    );
    assert!(refused.bytes(1).await.is_none(), "and closed");
    // The other listener has its own.
    let health = "GET /health HTTP/1.1\r\nhost: h\r\n\r\n";
    assert_eq!(call(us.auth, health).await.status, 200);
    for client in &mut silent {
        assert!(client.bytes(1).await.is_none(), "cut");
    }
    assert_eq!(call(us.client, &get("/", "")).await.status, 200);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn the_pool_keeps_no_more_than_it_may() {
    let (us, peer) = limited(|limits| limits.idle_per_target = 0).await;
    for _ in 0..3 {
        assert_eq!(call(us.client, &get("/", "")).await.status, 200);
    }
    assert_eq!(peer.count(), 3, "none was kept");
    us.mesh.shutdown().await;
}
