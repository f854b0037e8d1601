//! What only OpenSSL still does: weak keys, old versions, renegotiation. The root is that of `tests/weak_keys`.

use std::sync::Arc;

use dstack_vpc::identity::Identity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::kit::openssl::{Server, chain};
use crate::kit::pki::Signed;
use crate::kit::*;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
const SECRET: &str = "a-word-for-the-app-alone";

/// A machine that believes that root, and calls what is at `server`.
async fn calling(server: &Server) -> OurSide {
    let own = Signed::root(&pki::Shape::root());
    let us = OurSide::start(&own, settings(fixed(server.addr))).await;
    let root = CertificateDer::from_pem_file(chain("root")).unwrap();
    let identity = Arc::into_inner(identity(&own, pki::id(US))).unwrap();
    us.identity
        .send(Some(Arc::new(Identity { root, ..identity })))
        .unwrap();
    us
}

async fn call_with_secret(us: &OurSide) -> Wire {
    call(us.client, &get("/", &format!("x-word: {SECRET}\r\n"))).await
}

#[tokio::test]
async fn strong_keys_are_called() {
    for name in ["strong_rsa", "strong_pss"] {
        for version in ["-tls1_2", "-tls1_3"] {
            let mut server = Server::start(name, &[version]);
            let us = calling(&server).await;
            let (answer, ()) = tokio::join!(call_with_secret(&us), async {
                server.until(SECRET).await;
                server.say(ANSWER);
            });
            assert_eq!(answer.text(), "hi", "{name} {version}");
            us.mesh.shutdown().await;
        }
    }
}

#[tokio::test]
async fn weak_keys_and_old_versions_hear_nothing() {
    let weak = [
        ("ca_rsa1024", "untrusted_chain"),
        ("ca_p192", "untrusted_chain"),
        ("ca_p224", "untrusted_chain"),
        ("ca_sha1", "untrusted_chain"),
        ("leaf_sha1", "untrusted_chain"),
        ("leaf_md5", "untrusted_chain"),
        ("leaf_rsa1024", "tls_failed"),
        ("leaf_p192", "tls_failed"),
        ("leaf_p224", "tls_failed"),
    ];
    let weak = weak
        .iter()
        .flat_map(|(name, code)| [(*name, "-tls1_2", *code), (*name, "-tls1_3", *code)]);
    let old = ["-tls1", "-tls1_1"].map(|version| ("strong_rsa", version, "tls_failed"));
    for (name, version, code) in weak.chain(old) {
        let server = Server::start(name, &[version]);
        let us = calling(&server).await;
        let answer = call_with_secret(&us).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, code),
            "{name} {version}: {}",
            answer.text()
        );
        us.mesh.shutdown().await;
        // It says what became of the connection, and with it all that it heard.
        server.until("ERROR").await;
        assert!(
            !server.said().contains(SECRET),
            "{name} {version}: {}",
            server.said()
        );
    }
}

/// After a renegotiation somebody else could be there.
#[tokio::test]
async fn a_connection_is_negotiated_once() {
    let mut server = Server::start("strong_rsa", &["-tls1_2"]);
    let us = calling(&server).await;
    let (answer, ()) = tokio::join!(call_with_secret(&us), async {
        server.until(SECRET).await;
        server.say("r\n");
        server.until("no renegotiation").await;
    });
    assert_eq!(answer.status, 502, "{}", answer.text());
    us.mesh.shutdown().await;
}
