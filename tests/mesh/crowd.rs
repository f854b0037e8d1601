//! More callers than connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

const CALLERS: usize = 400;

/// A peer that answers at once, with this.
async fn answering(root: &Signed, with: &'static [u8]) -> Peer {
    let acceptor = Certificate::of(root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    Peer::scripted(acceptor, move |mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            // Whoever is not interested any more is gone.
            if stream.write_all(with).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn callers_share_connections() {
    let root = Signed::root(&Shape::root());
    let peer = answering(&root, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let client = us.client;
        callers.spawn(async move {
            let mut client = Client::connect(client).await;
            for _ in 0..5 {
                assert_eq!(client.call(&get("/", "")).await.status, 200);
            }
        });
    }
    callers.join_all().await;
    let connections = peer.count();
    assert!(
        connections < CALLERS * 3 / 4,
        "{connections} for {CALLERS} callers"
    );
    us.mesh.shutdown().await;
}

/// Answers without an end keep their connections: who comes next gets another one, not much later.
#[tokio::test]
async fn nobody_waits_for_what_does_not_end() {
    let root = Signed::root(&Shape::root());
    let peer = answering(
        &root,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
    )
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, begun) = (us.client, Arc::clone(&begun));
        callers.spawn(async move {
            let mut client = Client::connect(client).await;
            client.send(get("/", "")).await;
            let (status, _) = client.head().await.expect("an answer");
            assert_eq!(status, 200);
            begun.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        });
    }
    let all = async {
        while begun.load(Ordering::Relaxed) < CALLERS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("everybody's answer begins");
    assert_eq!(peer.count(), CALLERS);
    drop(callers);
    us.mesh.shutdown().await;
}
