//! What leaves the machine, seen by peers without an nginx in front.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::common::agent::Agent;
use crate::common::backend::Backend;
use crate::common::http::{self, With, post};
use crate::common::machine::Plan;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP, poll, run, tls};

#[test]
fn not_one_byte_goes_to_an_app_that_was_not_asked_for() {
    run(async {
        let agent = Agent::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let identity = tls::acceptor(&agent.issue(OTHER_APP));
        let (ended, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, received) = (ended.clone(), bytes.clone());
        let recorder = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                // With TLS 1.3 our side is done before the client has judged us; what it then sends is read.
                let Ok(mut stream) = identity.accept(stream).await else {
                    continue;
                };
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    received.fetch_add(n, Ordering::SeqCst);
                }
            }
        });

        let machine = Plan::new(&agent.socket(CLIENT_APP), peer, &[]).start().await;
        for body in ["short", &"long".repeat(1 << 18)] {
            let call = post("/secret", body.to_owned()).to_app(SERVER_APP);
            let reply = machine.call(call).await.unwrap();
            assert_eq!(reply.status, 502);
            assert_eq!(reply.json()["code"], "identity_mismatch", "{}", reply.text());
        }
        let both = poll(Duration::from_secs(10), async || {
            (ended.load(Ordering::SeqCst) >= 2).then_some(())
        });
        assert!(
            both.await.is_some(),
            "the peer was reached twice, and each connection ended"
        );
        recorder.abort();
        assert_eq!(bytes.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn trailers_pass_both_ways_over_http_1() {
    run(async {
        let agent = Agent::start().await;
        let peer = Backend::as_peer(&agent.issue(SERVER_APP), "peer").await;
        let machine = Plan::new(&agent.socket(CLIENT_APP), peer.addr(), &[])
            .start()
            .await;
        let proxy = machine.ports.client.addr();
        let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
        let request = format!(
            "POST /trailers HTTP/1.1\r\nHost: app.local\r\nX-Dstack-Target-App: {SERVER_APP}\r\nTE: trailers\r\n\
             Trailer: x-sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n"
        );
        let answer = http::raw(stream, request).await.unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.contains("\r\n0\r\n"), "chunked: {answer}");
        let trailers = answer.rsplit("\r\n0\r\n").next().unwrap_or_default();
        assert!(
            trailers.contains("grpc-status: 0") && trailers.contains("x-seen: 42"),
            "{answer}"
        );
    });
}
