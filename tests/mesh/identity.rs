//! Nobody but the target app receives anything, whatever it shows.

use dstack_vpc::spec::Gateway;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

#[tokio::test]
async fn the_right_app_is_reached_over_tls_1_2_and_1_3() {
    let root = Signed::root(&Shape::root());
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let acceptor = Certificate::of(&root, id(THEM)).acceptor(versions, &[]);
        let peer = Peer::serve(acceptor, |_| async { answer("hello") }).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        assert_eq!(call(us.client, &get("/", "")).await.text(), "hello");
        us.mesh.shutdown().await;
    }
}

/// Two targets behind one address: a session or a connection of one must never serve the other.
#[tokio::test]
async fn targets_behind_one_address_stay_apart() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    for _ in 0..3 {
        assert_eq!(client.call(&get("/", "")).await.status, 200);
        let other = format!(
            "GET / HTTP/1.1\r\nhost: h\r\nx-dstack-target-app: {}\r\n\r\n",
            id(0xcc)
        );
        let answer = client.call(&other).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "identity_mismatch")
        );
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_new_root_ends_trust_in_the_old_one_at_once() {
    let (old, new) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    let peer = echo_head(&old).await;
    let us = OurSide::start(&old, settings(peer.gateway())).await;
    let mut client = Client::connect(us.client).await;
    assert_eq!(client.call(&get("/", "")).await.status, 200);

    us.identity.send(Some(identity(&new, id(US)))).unwrap();
    let answer = client.call(&get("/", "")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "untrusted_chain"),
        "{}",
        answer.text()
    );
    us.identity.send(Some(identity(&old, id(US)))).unwrap();
    assert_eq!(client.call(&get("/", "")).await.status, 200);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn without_identity_or_gateway_calls_say_so() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(None)).await;
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "gateway_unknown"));

    us.mesh.update(settings(peer.gateway())).await.unwrap();
    us.identity.send(None).unwrap();
    let answer = call(us.client, &get("/", "")).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "no_identity"));

    us.identity.send(Some(identity(&root, id(US)))).unwrap();
    assert_eq!(call(us.client, &get("/", "")).await.status, 200);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn our_own_certificate_is_shown() {
    let root = Signed::root(&Shape::root());
    let root_der = root.der.clone();
    let peer = Peer::them(&root, move |mut stream, _| {
        let verifier = dstack_vpc::ratls::ClientVerifier::new(root_der.clone());
        async move {
            let chain = stream
                .get_ref()
                .1
                .peer_certificates()
                .unwrap_or_default()
                .to_vec();
            let caller = verifier.peer(&chain).unwrap().app_id.to_string();
            while read_head(&mut stream).await.is_some() {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{caller}");
                say(&mut stream, answer.as_bytes()).await;
            }
        }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    assert_eq!(call(us.client, &get("/", "")).await.text(), id(US).to_string());
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_refuses_our_certificate_is_named() {
    let (root, theirs) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let mut certificate = Certificate::of(&root, id(THEM));
        certificate.root = theirs.der.clone();
        let peer = Peer::serve(certificate.acceptor(versions, &[]), |_| async { answer("") }).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let answer = call(us.client, &get("/", "")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "tls_failed"),
            "{}",
            answer.text()
        );
        us.mesh.shutdown().await;
    }
}

/// With `use-tls: false` the gateway ends the TLS connection: nothing is verified and nothing of ours is shown.
#[tokio::test]
async fn use_tls_false_checks_and_shows_nothing() {
    let (root, gateways) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    let acceptor = Certificate::of(&gateways, id(0xdd)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::scripted(acceptor, |mut stream, _| async move {
        assert!(stream.get_ref().1.peer_certificates().is_none());
        let name = stream.get_ref().1.server_name().unwrap_or("").to_owned();
        read_head(&mut stream).await.unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
        say(&mut stream, answer.as_bytes()).await;
    })
    .await;
    let gateway = Gateway::Domain {
        domain: "gw.localhost".parse().unwrap(),
        port: peer.addr.port(),
    };
    let us = OurSide::start(&root, settings(Some(gateway))).await;
    let more = "x-dstack-target-use-tls: false\r\nx-dstack-target-port: 8080\r\n";
    let answer = call(us.client, &get("/", more)).await;
    assert_eq!(answer.text(), format!("{}-8080.gw.localhost", them()));
    us.mesh.shutdown().await;
}
