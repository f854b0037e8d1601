//! The gateway's domain: asked for, verified, told as it failed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dstack_vpc::agent::dev::{Faults, LeafRequest, Pki};
use dstack_vpc::facts::{self, Topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::{Home, PATIENCE, app, tls, watch, whole};

/// Serves `answer` to each connection over TLS, with a certificate of app 9 under `pki`.
async fn tls_gateway(pki: &Pki, body: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let issued = pki.issue(&app(9), &LeafRequest::both()).unwrap();
    let acceptor = tls::acceptor(&issued);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut io) = acceptor.accept(tcp).await {
                let _ = io.read(&mut [0; 4096]).await;
                let _ = io.write_all(answer.as_bytes()).await;
                let _ = io.shutdown().await;
            }
        }
    });
    (addr, task)
}

#[tokio::test]
async fn a_gateway_is_verified_when_the_root_is_known() {
    let home = Home::new();
    let _agent = home.agent(app(1), Faults::default()).await;
    let ours = Pki::load_or_create(home.0.path()).unwrap();
    for (pki, verified) in [(ours, true), (Pki::new().unwrap(), false)] {
        let (addr, task) = tls_gateway(
            &pki,
            r#"{"base_domain":"Tls.example.com.","external_port":443,"x":[]}"#,
        )
        .await;
        home.host_says(&[format!("https://{addr}/")]);
        let mut watched = watch(home.spec(), home.state()).await;
        let unverified = if verified { "" } else { " (unverified)" };
        watched.until("an identity and a gateway", whole).await;
        // The source changes without waking anybody.
        let source = || {
            watched
                .watcher
                .observed
                .borrow()
                .facts
                .gateway
                .as_ref()
                .unwrap()
                .source
                .clone()
        };
        let started = Instant::now();
        while source() != format!("gateway https://{addr}{unverified}") {
            assert!(started.elapsed() < PATIENCE, "{}", source());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        watched.watcher.join().await;
        task.abort();
    }
}

#[tokio::test]
async fn gateways_are_tried_in_turn_and_each_failure_is_told() {
    let home = Home::new();
    let agent = home.agent(app(1), Faults::default()).await;
    let good = format!("http://{}", agent.gateway_addr().unwrap());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("https://{}", listener.local_addr().unwrap())
    };
    // Accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("https://{}", silent.local_addr().unwrap());
    let pki = Pki::new().unwrap();
    let (junk, junk_task) = tls_gateway(&pki, r#"{"base_domain":"a b","external_port":443}"#).await;
    let bad = [
        closed,
        silent_url.clone(),
        format!("https://{junk}"),
        "http://127.0.0.1".to_owned(),
    ];

    home.host_says(&[&bad[..], std::slice::from_ref(&good)].concat());
    let started = Instant::now();
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert_eq!(
        observed.facts.gateway.unwrap().source,
        format!("gateway {good} (unverified)")
    );
    assert!(started.elapsed() < Duration::from_secs(8));

    agent.set_faults(|f| f.gateway_unconfigured = true);
    home.host_says(&[&bad[..], &[good]].concat());
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert!(observed.facts.gateway.is_none());
    let message = &observed.problem(Topic::Gateway).unwrap().message;
    for words in [
        "Connection refused",
        &format!("{silent_url}/: no answer within 5s"),
        "base_domain: expected a DNS name",
        "the gateway has no domain yet",
        "should it be https://127.0.0.1:9202?",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    drop(silent);
    junk_task.abort();
}
