//! A gigabyte each way through the proxy, which holds none of it. Alone in its process, because it measures the process.

#[path = "mesh/kit/mod.rs"]
mod kit;

use std::time::Duration;

use kit::pki::{Shape, Signed, id};
use kit::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TOTAL: usize = 1 << 30;
const BLOCK: usize = 64 * 1024;
/// What the process may grow by, in bytes: buffers of both ends of every connection, in a debug build.
const ALLOWED: usize = 8 << 20;

/// Resident memory of this process, in bytes (`/proc/self/statm` counts pages of 4 KiB on the machines we run on).
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_each_way_at_constant_memory() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::scripted(acceptor, |mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let mut block = vec![0; BLOCK];
            if head.starts_with(b"GET") {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {TOTAL}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                for _ in 0..TOTAL / BLOCK {
                    stream.write_all(&block).await.unwrap();
                }
            } else if head.starts_with(b"OPTIONS") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
            } else {
                for _ in 0..TOTAL / BLOCK {
                    stream.read_exact(&mut block).await.unwrap();
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
            }
            stream.flush().await.unwrap();
        }
    })
    .await;
    let mut wanted = settings(peer.gateway());
    wanted.response_timeout = Duration::from_secs(60);
    let us = OurSide::start(&root, wanted).await;
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&request("OPTIONS", "/warm", "")).await.status, 200);
    let before = resident();
    let mut peak = before;

    client.send(get("/down", "")).await;
    assert_eq!(client.head().await.unwrap().0, 200);
    for _ in 0..TOTAL / BLOCK {
        assert_eq!(client.bytes(BLOCK).await.unwrap().len(), BLOCK);
        peak = peak.max(resident());
    }
    client
        .send(request("POST", "/up", &format!("content-length: {TOTAL}\r\n")))
        .await;
    let block = vec![0; BLOCK];
    for _ in 0..TOTAL / BLOCK {
        client.send(&block).await;
        peak = peak.max(resident());
    }
    assert_eq!(client.response(false).await.unwrap().status, 200);

    // A client that does not read stops the peer: its socket buffers fill, and ours do not grow.
    client.send(get("/down", "")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    peak = peak.max(resident());
    println!("grew by {} KiB", (peak - before) >> 10);
    assert!(peak - before < ALLOWED, "grew by {} KiB", (peak - before) >> 10);
    us.mesh.shutdown().await;
}
