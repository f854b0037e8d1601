//! Discovery that waits for news.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::http::Reply;
use crate::common::{poll, process};
use crate::kit::*;

/// Far below any wait that is asked for here, far above what news take.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn timed(asked: impl Future<Output = Reply>) -> (Reply, Duration) {
    let start = Instant::now();
    (asked.await, start.elapsed())
}

fn index(reply: &Reply) -> u64 {
    reply.json()["index"]
        .as_u64()
        .unwrap_or_else(|| panic!("no index in {}", reply.text()))
}

#[tokio::test]
async fn news_end_the_wait_and_nothing_else_does() {
    let server = Arc::new(Server::start().await);
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    // Without an index there is nothing to wait for, as there is a node.
    let (first, took) = timed(server.get(OURS, "/api/discover/db?wait=30s")).await;
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(first.json()["count"], 1);
    let known = index(&first);
    // Another index than the present one: at once.
    let (again, took) = timed(server.get(OURS, "/api/discover/db?wait=30&index=1")).await;
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(index(&again), known);
    // An index alone does not wait, and is answered with one.
    assert_eq!(index(&server.get(OURS, "/api/discover/db?index=1").await), known);

    let path = format!("/api/discover/db?wait=40s&index={known}");
    let waiter = tokio::spawn({
        let (server, path) = (Arc::clone(&server), path.clone());
        async move { timed(server.get(OURS, &path)).await }
    });
    // A heartbeat, a node of another type and one without a host name are no news.
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    server.announce(OURS, "n-9", "web", "100.128.0.9").await;
    server.post(OURS, "/api/nodes/update?uuid=n-8&node_type=db").await;
    let (same, took) = timed(server.get(OURS, &path.replace("40s", "200ms"))).await;
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert_eq!((same.status, index(&same)), (200, known));
    assert!(!waiter.is_finished());

    server.announce(OURS, "n-2", "db", "100.128.0.2").await;
    let changed = Instant::now();
    let (news, _) = waiter.await.expect("an answer");
    assert!(
        changed.elapsed() < Duration::from_secs(1),
        "{:?}",
        changed.elapsed()
    );
    assert_eq!(news.json()["count"], 2);
    assert_ne!(index(&news), known);
}

#[tokio::test]
async fn an_empty_listing_is_waited_out() {
    let server = Arc::new(Server::start().await);
    let (none, took) = timed(server.get(OURS, "/api/discover/db?wait=300ms")).await;
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_eq!((none.status, words(&none).as_str()), (404, "No db nodes found"));
    let known = index(&none);
    for path in [
        "/api/discover/db?wait=40s".to_owned(),
        format!("/api/discover/db?wait=40s&index={known}"),
    ] {
        let id = format!("n-{}", path.len());
        let waiter = tokio::spawn({
            let server = Arc::clone(&server);
            async move { server.get(OURS, &path).await }
        });
        server.announce(OURS, &id, "db", "100.128.0.1").await;
        assert_eq!(waiter.await.expect("an answer").status, 200);
        // Gone again, for the next one.
        server
            .post(OURS, &format!("/api/nodes/update?uuid={id}&node_type=other"))
            .await;
    }
    // That all are gone is news to those who knew of one.
    let (gone, took) = timed(server.get(OURS, "/api/discover/db?wait=40s&index=1")).await;
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!((gone.status, index(&gone)), (404, known));
}

/// The latencies are printed: `cargo test --test api -- --nocapture thousand`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiters_are_cheap_and_all_are_told() {
    const WAITERS: usize = 1000;
    let server = Arc::new(Server::start().await);
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    let known = index(&server.get(OURS, "/api/discover/db?wait=1s").await);
    let addr = server.addr().await;
    let me = std::process::id() as i32;
    let before = process::resident(me);
    let request = format!(
        "GET /api/discover/db?wait=50s&index={known} HTTP/1.1\r\nHost: a\r\nx-dstack-app-id: {OURS}\r\n\
         Connection: close\r\n\r\n"
    );
    let open = join_all((0..WAITERS).map(async |_| {
        let mut stream = TcpStream::connect(addr).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream
    }))
    .await;
    // Other requests are answered while they wait.
    let (ping, took) = timed(server.get(OURS, "/api/nodes")).await;
    assert!(ping.status == 200 && took < AT_ONCE, "{took:?}");
    let each = process::resident(me).saturating_sub(before) * 1024 / WAITERS as u64;
    assert!(
        each < 64 * 1024,
        "{each} bytes a waiter, both ends and the test's own task"
    );

    server.announce(OURS, "n-2", "db", "100.128.0.2").await;
    let changed = Instant::now();
    let told = join_all(open.into_iter().map(async |stream| {
        let answer = crate::common::http::raw(stream, "").await.expect("an answer");
        assert!(answer.contains(r#""count":2"#), "{answer}");
        changed.elapsed()
    }))
    .await;
    let (first, last) = (told.iter().min(), told.iter().max());
    println!("{WAITERS} waiters: {each} bytes each, told after {first:?} to {last:?}");
    assert!(*last.expect("waiters") < AT_ONCE, "{last:?}");
}

#[tokio::test]
async fn whoever_hangs_up_is_forgotten() {
    let server = Server::start().await;
    let addr = server.addr().await;
    let me = std::process::id();
    // Sockets of this listener that this process has open, on either end.
    let sockets = || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
        let port = format!(":{:04X} ", addr.port());
        table
            .lines()
            .filter(|line| line.contains(&port) && line.contains(" 01 "))
            .count()
    };
    let request =
        format!("GET /api/discover/db?wait=55s HTTP/1.1\r\nHost: a\r\nx-dstack-app-id: {OURS}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(addr).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        open.push(stream);
    }
    let all = poll(PATIENCE, async || (sockets() == 100).then_some(())).await;
    assert!(all.is_some(), "{} of process {me}", sockets());
    drop(open);
    let none = poll(PATIENCE, async || (sockets() == 0).then_some(())).await;
    assert!(none.is_some(), "{} of process {me}", sockets());
}

#[tokio::test]
async fn the_end_of_the_server_ends_every_wait() {
    let server = Server::start().await;
    let addr = server.addr().await;
    let waiters = join_all((0..20).map(async |_| {
        let mut stream = TcpStream::connect(addr).await.expect("connected");
        let request =
            format!("GET /api/discover/db?wait=55s HTTP/1.1\r\nHost: a\r\nx-dstack-app-id: {OURS}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream
    }))
    .await;
    let start = Instant::now();
    server.api.shutdown().await;
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    for stream in waiters {
        let answer = crate::common::http::raw(stream, "").await.expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"),
            "{answer}"
        );
        assert!(
            answer.contains(r#""error":"No db nodes found","index":"#),
            "{answer}"
        );
    }
}
