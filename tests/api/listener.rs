//! Where it listens, and how that changes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use dstack_vpc::api::Api;
use dstack_vpc::mesh::BindError;
use dstack_vpc::paths::StateDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::http::{get, send};
use crate::common::ports::Port;
use crate::kit::*;

async fn is_served(addr: SocketAddr) -> bool {
    send(addr, get("/health"))
        .await
        .is_ok_and(|reply| reply.status == 200)
}

#[tokio::test]
async fn a_taken_port_names_who_has_it_and_changes_nothing() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken_addr = taken.local_addr().expect("its address");
    let mut wanted = settings();
    wanted.listen = taken_addr;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let error = match Api::start(wanted.clone(), &StateDir::new(dir.path())) {
        Ok(_) => panic!("a taken port was opened"),
        Err(error) => error.to_string(),
    };
    assert!(
        error.starts_with(&format!("server.api_listen = \"{taken_addr}\" is taken by ")),
        "{error}"
    );
    assert!(error.contains(&format!("(pid {}", std::process::id())), "{error}");

    let server = Server::start().await;
    let (addr, before) = (server.addr().await, server.api.settings());
    wanted.requests_per_hour = 1;
    assert!(matches!(
        server.api.update(wanted.clone()).await,
        Err(BindError::Taken { .. })
    ));
    assert_eq!((server.addr().await, server.api.settings()), (addr, before));
    assert!(is_served(addr).await);
    drop(taken);
    server.api.update(wanted).await.expect("updated");
    assert!(is_served(taken_addr).await);
}

#[tokio::test]
async fn a_moved_listener_answers_at_both_places_until_it_is_retired() {
    let server = Server::start().await;
    let (old, port) = (server.addr().await, Port::reserve());
    let mut moved = settings();
    moved.listen = port.addr();
    server.api.update(moved.clone()).await.expect("moved");
    assert_eq!(server.addr().await, port.addr());
    assert!(is_served(old).await && is_served(port.addr()).await);
    // Back again: no socket is closed on the way.
    let mut back = settings();
    back.listen = old;
    server.api.update(back).await.expect("moved back");
    assert!(is_served(old).await && is_served(port.addr()).await);
    server.api.update(moved).await.expect("moved");

    // Who waits there when it goes is answered, then the connection ends.
    let mut waiting = TcpStream::connect(old).await.expect("connected");
    let request =
        format!("GET /api/discover/db?wait=55s HTTP/1.1\r\nHost: a\r\nx-dstack-app-id: {OURS}\r\n\r\n");
    waiting.write_all(request.as_bytes()).await.expect("written");
    server.api.retire().await;
    let mut answer = String::new();
    let start = Instant::now();
    waiting.read_to_string(&mut answer).await.expect("an answer");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let gone = crate::common::poll(PATIENCE, async || TcpStream::connect(old).await.err());
    assert!(gone.await.is_some());
    assert!(is_served(port.addr()).await);
    server.api.shutdown().await;
    assert!(!is_served(port.addr()).await);
}

/// One socket cannot be had beside the other: the old one makes way, and comes back when the new one fails.
#[tokio::test]
async fn from_one_address_to_all_of_them_on_the_same_port() {
    let port = Port::reserve();
    let server = Server::with(|settings| settings.listen = port.addr()).await;
    let mut wanted = settings();
    for ip in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
        wanted.listen = (ip, port.number()).into();
        server.api.update(wanted.clone()).await.expect("moved");
        assert_eq!(server.addr().await, wanted.listen);
        assert!(is_served(port.addr()).await, "{ip}");
        server.api.retire().await;
        assert!(is_served(port.addr()).await, "{ip}");
    }
    wanted.listen = (Ipv4Addr::new(192, 0, 2, 1), port.number()).into();
    server.api.update(wanted).await.expect_err("no such address");
    assert!(is_served(port.addr()).await);
}

#[tokio::test]
async fn bodies_are_dropped_up_to_a_limit() {
    let server = Server::start().await;
    let post = |length: usize| {
        format!(
            "POST /api/nodes/update?uuid=n-1 HTTP/1.1\r\nHost: a\r\nx-dstack-app-id: {OURS}\r\n\
             Content-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        )
    };
    // The connection can be used again after a body that nobody wanted.
    let mut two = post(60_000);
    two += "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let replies = server.raw(two).await;
    assert_eq!(replies.matches("HTTP/1.1 200 OK").count(), 2, "{replies}");
    let reply = server
        .raw(post(70_000).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(
        reply.starts_with("HTTP/1.1 413 ") && reply.contains("65536 bytes at most"),
        "{reply}"
    );
    let reply = server.raw("nonsense\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
}
