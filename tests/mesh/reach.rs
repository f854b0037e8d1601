//! Where a call goes, and what is told when nobody there answers.

use std::time::{Duration, Instant};

use dstack_vpc::spec::{AgentAddr, Gateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::pool::OK;
use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

#[tokio::test]
async fn silence_ends_in_504() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let mut wanted = settings(peer.gateway());
    wanted.response_timeout = Duration::from_millis(300);
    wanted.connect_timeout = Duration::from_millis(300);
    let us = OurSide::start(&root, wanted.clone()).await;
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "response_timeout"),
        "{}",
        answer.text()
    );

    // The clock starts when the request has ended.
    let mut client = Client::connect(us.client).await;
    let begin = Instant::now();
    client.send(request("POST", "/", "content-length: 4\r\n")).await;
    for byte in ["a", "b", "c", "d"] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.send(byte).await;
    }
    let answer = client.response(false).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (504, "response_timeout"));
    assert!(
        begin.elapsed() >= Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );

    // Takes the connection, says nothing in the handshake.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    wanted.gateway = fixed(mute.local_addr().unwrap());
    us.mesh.update(wanted).await.unwrap();
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "connect_timeout"),
        "{}",
        answer.text()
    );
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_apart() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;

    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    us.mesh.update(settings(fixed(free))).await.unwrap();
    assert_eq!(call(us.client, &get("/", "")).await.code(), "connect_refused");

    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    us.mesh
        .update(settings(fixed(closing.local_addr().unwrap())))
        .await
        .unwrap();
    let hang_up = tokio::spawn(async move { drop(closing.accept().await) });
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!(answer.code(), "tls_failed", "{}", answer.text());
    assert!(answer.text().contains("no instance"), "{}", answer.text());
    hang_up.await.unwrap();

    let nowhere = Gateway::Domain {
        domain: "nowhere.invalid".parse().unwrap(),
        port: 443,
    };
    us.mesh.update(settings(Some(nowhere))).await.unwrap();
    let answer = call(us.client, &get("/", "")).await;
    assert!(
        ["dns", "connect_timeout"].contains(&answer.code().as_str()),
        "{}",
        answer.text()
    );
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn the_domain_form_names_the_target() {
    let root = Signed::root(&Shape::root());
    let peer = Peer::them(&root, |mut stream, _| async move {
        let name = stream.get_ref().1.server_name().unwrap_or("").to_owned();
        while read_head(&mut stream).await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            say(&mut stream, answer.as_bytes()).await;
        }
    })
    .await;
    let gateway = Gateway::Domain {
        domain: "apps.localhost".parse().unwrap(),
        port: peer.addr.port(),
    };
    let us = OurSide::start(&root, settings(Some(gateway))).await;
    let name = |answer: Wire| answer.text();
    assert_eq!(
        name(call(us.client, &get("/", "")).await),
        format!("{}-443s.apps.localhost", them())
    );
    let instance = "BB000000000000000000000000000000000000CC";
    let more = format!("x-dstack-target-instance: {instance}\r\nx-dstack-target-port: 8443\r\n");
    let expected = format!("{}-8443s.apps.localhost", instance.to_lowercase());
    assert_eq!(name(call(us.client, &get("/", &more)).await), expected);
    us.mesh.shutdown().await;
}

/// `.localhost` has an address in each family: the one that refuses does not hide the other.
#[tokio::test]
async fn the_next_address_is_tried_and_ipv6_works() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::scripted_at("[::1]:0", acceptor, |mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        say(&mut stream, OK).await;
    })
    .await;
    let by_name = Gateway::Domain {
        domain: "apps.localhost".parse().unwrap(),
        port: peer.addr.port(),
    };
    for gateway in [by_name, Gateway::Fixed(peer.addr.into())] {
        let mut wanted = settings(Some(gateway));
        wanted.client_listen = "[::1]:0".parse().unwrap();
        let us = OurSide::start(&root, wanted).await;
        assert_eq!(call(us.client, &get("/", "")).await.text(), "ok");
        us.mesh.shutdown().await;
    }
}

/// Clients mostly send the whole body before they look for an answer, and must find one.
#[tokio::test]
async fn a_refused_upload_still_gets_its_answer() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(0xbb)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::scripted(acceptor, |_, _| async {}).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    for (headers, code) in [
        ("", "identity_mismatch"),
        ("x-dstack-target-port: x\r\n", "bad_target"),
    ] {
        for _ in 0..10 {
            let mut client = Client::connect(us.client).await;
            let body = vec![0; 3_000_000];
            client
                .send(request(
                    "POST",
                    "/",
                    &format!("{headers}content-length: {}\r\n", body.len()),
                ))
                .await;
            client.send(&body).await;
            assert_eq!(client.response(false).await.unwrap().code(), code);
            // And the connection can be used for the next.
            client
                .send(request("POST", "/", "x-dstack-target-port: x\r\ncontent-length: 1\r\n") + "x")
                .await;
            assert_eq!(client.response(false).await.unwrap().code(), "bad_target");
        }
    }
    us.mesh.shutdown().await;
}

/// A guest agent on a unix socket that answers with the head it got.
async fn agent(listener: UnixListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let text = String::from_utf8(head).unwrap();
        let mut body = String::new();
        if text.contains("content-length: 7") {
            let mut bytes = [0; 7];
            stream.read_exact(&mut bytes).await.unwrap();
            body = String::from_utf8(bytes.to_vec()).unwrap();
        }
        let text = text + &body;
        let answer = format!(
            "HTTP/1.1 400 Bad\r\nx-agent: 1\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_target_the_guest_agent_answers() {
    let root = Signed::root(&Shape::root());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let us = OurSide::start(&root, settings(None)).await;
    let plain =
        |method: &str, path: &str, more: &str| format!("{method} {path} HTTP/1.1\r\nhost: h\r\n{more}\r\n");
    assert_eq!(
        call(us.client, &plain("GET", "/info", "")).await.code(),
        "agent_unavailable"
    );

    let mut wanted = settings(None);
    wanted.agent = Some(AgentAddr::Unix(path.clone()));
    us.mesh.update(wanted.clone()).await.unwrap();
    let answer = call(us.client, &plain("GET", "/info", "")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "agent_unavailable")
    );

    let mut running = tokio::spawn(agent(UnixListener::bind(&path).unwrap()));
    let mut client = Client::connect(us.client).await;
    for round in 0..2 {
        let answer = client
            .call(&plain(
                "GET",
                "/get_tls_key?subject=a_b",
                "x-kept: 1\r\nkeep-alive: 1\r\nx-request-id: a\r\n",
            ))
            .await;
        assert_eq!(
            (answer.status, answer.all("x-agent").len()),
            (400, 1),
            "{}",
            answer.text()
        );
        assert_eq!(
            answer.text(),
            "GET /GetTlsKey?subject=a_b HTTP/1.1\r\nhost: localhost\r\nx-kept: 1\r\nx-request-id: a\r\n\r\n"
        );
        let json = "content-type: application/json\r\ncontent-length: 7\r\n";
        let answer = client
            .call(&(plain("POST", "/prpc/Info", json) + "{\"a\":1}"))
            .await;
        assert!(
            answer.text().starts_with("POST /Info HTTP/1.1\r\n"),
            "{}",
            answer.text()
        );
        assert!(
            answer.text().contains("content-type: application/json"),
            "{}",
            answer.text()
        );
        assert!(
            answer.text().ends_with("{\"a\":1}"),
            "round {round}: {}",
            answer.text()
        );

        // It restarts: a new socket under the same name.
        running.abort();
        let _ = running.await;
        std::fs::remove_file(&path).unwrap();
        running = tokio::spawn(agent(UnixListener::bind(&path).unwrap()));
    }
    running.abort();

    assert_eq!(client.call(&plain("GET", "/health", "")).await.text(), "OK");
    let gateway = client.call(&plain("GET", "/gateway", "")).await.text();
    assert_eq!(gateway, r#"{"gateway_domain":null}"#);
    wanted.gateway = Some(Gateway::Domain {
        domain: "apps.example.com".parse().unwrap(),
        port: 443,
    });
    us.mesh.update(wanted).await.unwrap();
    let gateway = client.call(&plain("GET", "/gateway", "")).await.text();
    assert_eq!(gateway, r#"{"gateway_domain":"apps.example.com:443"}"#);
    us.mesh.shutdown().await;
}
