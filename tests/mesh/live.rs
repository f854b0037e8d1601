//! Changes under load: nothing that runs is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dstack_vpc::mesh::BindError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

/// Clients that call without a pause, each on its own connection, at whatever address holds now.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(count: usize, addr: watch::Receiver<std::net::SocketAddr>) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let (stop, done, mut addr) = (Arc::clone(&stop), Arc::clone(&done), addr.clone());
            clients.spawn(async move {
                let mut client = Client::connect(now(&mut addr)).await;
                while !stop.load(Ordering::SeqCst) {
                    client.send(get("/", "")).await;
                    let answer = client.response(false).await.expect("a call was cut");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    done.fetch_add(1, Ordering::SeqCst);
                    let closing = answer.all("connection") == ["close"];
                    if closing || addr.has_changed().unwrap_or(false) {
                        client = Client::connect(now(&mut addr)).await;
                    }
                }
            });
        }
        Self { stop, done, clients }
    }

    async fn calls(&self, more: usize) {
        let goal = self.done.load(Ordering::SeqCst) + more;
        let begin = Instant::now();
        while self.done.load(Ordering::SeqCst) < goal && !self.clients.is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        self.done.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_without_a_failed_call() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let (_addr, watched) = watch::channel(us.client);
    let load = Load::start(16, watched);
    for _ in 0..20 {
        load.calls(50).await;
        us.identity.send(Some(identity(&root, id(US)))).unwrap();
    }
    let before = peer.count();
    load.calls(200).await;
    assert!(before > 20, "new certificates were shown: {before}");
    assert!(load.end().await >= 1200);
    us.mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_move_without_a_failed_call() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let (addr, watched) = watch::channel(us.client);
    let load = Load::start(16, watched);
    for round in 0..10 {
        load.calls(100).await;
        let mut wanted = settings(peer.gateway());
        // A fresh port: as good as any, and free until we take it.
        wanted.client_listen = free_port().await;
        wanted.drain_timeout = Duration::from_secs(5);
        us.mesh.update(wanted.clone()).await.unwrap();
        let moved = us.mesh.local_addrs().await.client;
        assert_eq!(moved, wanted.client_listen, "round {round}");
        addr.send(moved).unwrap();
        us.mesh.retire().await;
    }
    load.calls(100).await;
    load.end().await;
    let begin = Instant::now();
    while TcpStream::connect(us.client).await.is_ok() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the first port stays open"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    us.mesh.shutdown().await;
}

fn now(addr: &mut watch::Receiver<std::net::SocketAddr>) -> std::net::SocketAddr {
    *addr.borrow_and_update()
}

#[tokio::test]
async fn a_taken_port_changes_nothing() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut wanted = settings(None);
    wanted.client_listen = free_port().await;
    wanted.auth_listen = taken.local_addr().unwrap();
    let error = us.mesh.update(wanted.clone()).await.unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("mesh.auth_listen") && text.contains(&wanted.auth_listen.port().to_string()),
        "{text}"
    );
    assert_eq!(us.mesh.local_addrs().await.client, us.client);
    assert!(us.mesh.settings().gateway.is_some());
    assert_eq!(call(us.client, &get("/", "")).await.status, 200);
    assert!(
        TcpStream::connect(wanted.client_listen).await.is_err(),
        "nothing was left open"
    );

    let mut wanted = settings(None);
    wanted.client_listen = "192.0.2.1:1".parse().unwrap();
    let error = us.mesh.update(wanted).await.unwrap_err();
    assert!(matches!(error, BindError::Failed { .. }), "{error}");
    us.mesh.shutdown().await;

    let (_identity, receiver) = watch::channel(None);
    let mut wanted = settings(None);
    wanted.auth_listen = taken.local_addr().unwrap();
    let error = dstack_vpc::mesh::Mesh::start(wanted, receiver).err().unwrap();
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
}

/// A change that is rolled back returns to the address that was left: nobody there noticed anything.
#[tokio::test]
async fn a_listener_returns_to_where_it_still_listens() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut first = settings(peer.gateway());
    first.client_listen = free_port().await;
    us.mesh.update(first.clone()).await.unwrap();
    us.mesh.retire().await;
    let mut client = Client::connect(first.client_listen).await;
    assert_eq!(client.call(&get("/", "")).await.status, 200);

    let mut second = first.clone();
    second.client_listen = free_port().await;
    us.mesh.update(second.clone()).await.unwrap();
    assert_eq!(
        call(first.client_listen, &get("/", "")).await.status,
        200,
        "until it is retired"
    );
    assert_eq!(call(second.client_listen, &get("/", "")).await.status, 200);
    us.mesh.update(first.clone()).await.unwrap();
    us.mesh.retire().await;
    assert_eq!(us.mesh.local_addrs().await.client, first.client_listen);
    for _ in 0..2 {
        let answer = client.call(&get("/", "")).await;
        assert_eq!(
            (answer.status, answer.all("connection").len()),
            (200, 0),
            "the connection goes on"
        );
    }
    us.mesh.shutdown().await;
}

/// The addresses of two listeners change places, and one widens to all interfaces on the port it has.
#[tokio::test]
async fn listeners_may_take_each_others_ports() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let mut wanted = settings(None);
    (wanted.client_listen, wanted.auth_listen) = (free_port().await, free_port().await);
    us.mesh.update(wanted.clone()).await.unwrap();
    std::mem::swap(&mut wanted.client_listen, &mut wanted.auth_listen);
    us.mesh.update(wanted.clone()).await.unwrap();
    let auth = call(wanted.auth_listen, "GET /auth HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(auth.code(), "no_certificate");
    assert_eq!(
        call(wanted.client_listen, &get("/", "")).await.code(),
        "gateway_unknown"
    );

    let port = wanted.client_listen.port();
    wanted.client_listen = format!("0.0.0.0:{port}").parse().unwrap();
    us.mesh.update(wanted.clone()).await.unwrap();
    let addr = format!("127.0.0.1:{port}").parse().unwrap();
    assert_eq!(call(addr, &get("/", "")).await.code(), "gateway_unknown");

    // One of the two cannot be had: the other goes back to where it was.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bad = wanted.clone();
    bad.client_listen = format!("127.0.0.1:{port}").parse().unwrap();
    bad.auth_listen = taken.local_addr().unwrap();
    us.mesh.update(bad).await.unwrap_err();
    assert_eq!(us.mesh.local_addrs().await.client, wanted.client_listen);
    assert_eq!(call(addr, &get("/", "")).await.code(), "gateway_unknown");
    us.mesh.shutdown().await;
}

/// `[::]` makes room for another listener of ours on IPv4, and takes its place when that is gone.
#[tokio::test]
async fn a_wildcard_leaves_ipv4_to_whoever_is_beside_it() {
    if TcpListener::bind("[::1]:0").await.is_err() {
        eprintln!("this machine has no IPv6: nothing to see");
        return;
    }
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let v4 = free_port().await;
    let v6 = format!("[::1]:{}", v4.port()).parse().unwrap();
    let question = "GET /auth HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut alone = settings(None);
    alone.client_listen = format!("[::]:{}", v4.port()).parse().unwrap();
    let mut beside = alone.clone();
    beside.auth_listen = v4;
    beside.only_ipv6.insert(beside.client_listen);
    for _ in 0..2 {
        us.mesh.update(alone.clone()).await.unwrap();
        for addr in [v4, v6] {
            assert_eq!(call(addr, question).await.code(), "agent_unavailable", "{addr}");
        }
        us.mesh.update(beside.clone()).await.unwrap();
        assert_eq!(call(v4, question).await.code(), "no_certificate");
        assert_eq!(call(v6, question).await.code(), "agent_unavailable");
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_then_cuts() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        let head = String::from_utf8(read_head(&mut stream).await.unwrap()).unwrap();
        say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsl").await;
        let pause = if head.contains("/slow") { 300 } else { 60_000 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let _ = stream.write_all(b"ow").await;
        let _ = stream.flush().await;
    })
    .await;
    let mut wanted = settings(peer.gateway());
    wanted.drain_timeout = Duration::from_millis(900);
    let us = OurSide::start(&root, wanted).await;
    let (mut slow, mut stuck) = (Client::connect(us.client).await, Client::connect(us.client).await);
    let mut idle = Client::connect(us.client).await;
    slow.send(get("/slow", "")).await;
    stuck.send(get("/stuck", "")).await;
    assert_eq!(slow.head().await.unwrap().0, 200);
    assert_eq!(stuck.head().await.unwrap().0, 200);

    let begin = Instant::now();
    let shutdown = tokio::spawn(us.mesh.shutdown());
    assert_eq!(slow.bytes(4).await.unwrap(), b"slow");
    assert!(idle.response(false).await.is_none());
    assert!(stuck.bytes(4).await.is_none(), "cut");
    shutdown.await.unwrap();
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(850)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn dropping_the_mesh_ends_it() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let mut idle = TcpStream::connect(us.client).await.unwrap();
    drop(us.mesh);
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), idle.read_to_end(&mut rest))
        .await
        .expect("still open");
    assert!(rest.is_empty());
}
