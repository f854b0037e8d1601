//! The outbound proxy through its own door: a real listener, real TLS peers.

mod mesh_kit;

use mesh_kit::pki::{Shape, Signed, id};
use mesh_kit::*;

#[tokio::test]
async fn a_call_reaches_the_target_and_comes_back() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;

    let mut client = Client::connect(us.client).await;
    for round in 0..3 {
        let more = "x-dstack-app-id: spoofed\r\nx-kept: 1\r\nconnection: x-gone\r\nx-gone: 1\r\n";
        let answer = client.call(&get(&format!("/path/{round}?q=%20"), more)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(
            answer.text(),
            format!("GET /path/{round}?q=%20 HTTP/1.1\nhost: service.internal\nx-kept: 1\n\n")
        );
    }
    assert_eq!(peer.count(), 1, "one TLS connection for all");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn another_app_never_receives_a_byte() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(0xbb)).acceptor(rustls::ALL_VERSIONS, &[]);
    let peer = Peer::scripted(acceptor, |_, _| async { panic!("the handshake went through") }).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;

    let answer = call(us.client, &request("POST", "/secret", "content-length: 3\r\n")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "identity_mismatch"),
        "{}",
        answer.text()
    );
    assert_eq!(peer.count(), 0);
    us.mesh.shutdown().await;
}
