//! TLS sessions that are taken up again: what was believed once is looked at once more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dstack_vpc::ratls::provider;
use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

type Kinds = Arc<Mutex<Vec<HandshakeKind>>>;

/// An app that takes one request a connection, knows its callers again, and would take early data.
async fn forgetful(certificate: &Certificate, version: &'static SupportedProtocolVersion) -> (Peer, Kinds) {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
        .unwrap();
    config.max_early_data_size = 16 * 1024;
    let kinds = Kinds::default();
    let seen = Arc::clone(&kinds);
    let peer = Peer::scripted(TlsAcceptor::from(Arc::new(config)), move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            let session = &mut stream.get_mut().1;
            assert!(
                session.early_data().is_none(),
                "a request that anybody could repeat"
            );
            seen.lock().unwrap().push(session.handshake_kind().unwrap());
            if read_head(&mut stream).await.is_some() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            let _ = stream.read(&mut [0]).await;
        }
    })
    .await;
    (peer, kinds)
}

fn last(kinds: &Kinds) -> HandshakeKind {
    *kinds.lock().unwrap().last().unwrap()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[tokio::test]
async fn a_session_is_resumed_without_early_data() {
    let root = Signed::root(&Shape::root());
    for version in VERSIONS {
        let (peer, kinds) = forgetful(&Certificate::of(&root, id(THEM)), version).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        for _ in 0..5 {
            assert_eq!(client.call(&get("/", "")).await.text(), "hi");
        }
        let resumed = kinds
            .lock()
            .unwrap()
            .iter()
            .filter(|kind| **kind == HandshakeKind::Resumed)
            .count();
        assert_eq!(resumed, 4, "{version:?}");
        us.mesh.shutdown().await;
    }
}

/// The peer still knows the session; with the identity that it was made under, it is forgotten here.
#[tokio::test]
async fn no_session_survives_a_new_root_or_a_new_certificate() {
    let (old, new) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    for version in VERSIONS {
        let (peer, kinds) = forgetful(&Certificate::of(&old, id(THEM)), version).await;
        let us = OurSide::start(&old, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            assert_eq!(client.call(&get("/", "")).await.status, 200);
            assert_eq!(last(&kinds), expected);
        }

        us.identity.send(Some(identity(&old, id(US)))).unwrap();
        assert_eq!(client.call(&get("/", "")).await.status, 200);
        assert_eq!(last(&kinds), HandshakeKind::Full, "{version:?}");

        us.identity.send(Some(identity(&new, id(US)))).unwrap();
        let connections = peer.count();
        let answer = client.call(&get("/", "")).await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "untrusted_chain"));
        assert_eq!(
            peer.count(),
            connections,
            "{version:?}: no handshake came to an end"
        );
        us.mesh.shutdown().await;
    }
}

/// rustls asks no verifier about a resumed session, so a certificate could be used for ever by coming back often enough.
#[tokio::test]
async fn a_resumed_session_ends_with_its_certificate() {
    let root = Signed::root(&Shape::root());
    let end = time::OffsetDateTime::now_utc() + Duration::from_secs(2);
    let ends = |s: Shape| s.with(|s| s.not_after = end);
    let (ca, leaf) = (Shape::app_ca(id(THEM)), Shape::leaf(id(THEM)));
    let chains = [(ca.clone(), ends(leaf.clone())), (ends(ca), leaf)];
    let cases = VERSIONS
        .iter()
        .flat_map(|version| chains.iter().map(move |chain| (version, chain)));
    let all = cases.map(async |(version, (ca, leaf))| {
        let ca = root.sign(ca);
        let (peer, kinds) = forgetful(&Certificate::new(&root, &ca.sign(leaf), &[&ca]), version).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let mut answered = 0;
        let refused = loop {
            let answer = client.call(&get("/", "")).await;
            if answer.status != 200 {
                break answer;
            }
            answered += 1;
            assert!(
                tokio::time::Instant::now() < deadline,
                "{version:?}: still believed"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (502, "expired"),
            "{}",
            refused.text()
        );
        assert!(
            answered > 1 && last(&kinds) == HandshakeKind::Resumed,
            "{version:?}: {answered} answers"
        );
        us.mesh.shutdown().await;
    });
    futures_util::future::join_all(all).await;
}

/// Behind one address another app may take up the session of the first: it is never offered to it.
#[tokio::test]
async fn a_session_is_one_targets() {
    let root = Signed::root(&Shape::root());
    for version in VERSIONS {
        let (peer, kinds) = forgetful(&Certificate::of(&root, id(THEM)), version).await;
        let us = OurSide::start(&root, settings(peer.gateway())).await;
        let mut client = Client::connect(us.client).await;
        assert_eq!(client.call(&get("/", "")).await.status, 200);
        let other = format!(
            "GET / HTTP/1.1\r\nhost: h\r\nx-dstack-target-app: {}\r\n\r\n",
            id(0xcc)
        );
        assert_eq!(client.call(&other).await.code(), "identity_mismatch");
        let instance = format!("x-dstack-target-instance: {}\r\n", id(0xdd));
        assert_eq!(client.call(&get("/", &instance)).await.status, 200);
        assert_eq!(last(&kinds), HandshakeKind::Full, "{version:?}");
        us.mesh.shutdown().await;
    }
}
