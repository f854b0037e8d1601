//! Requests that could be read in two ways reach a peer in one way or not at all.

use crate::attacks::{Witness, mount};
use crate::kit::pki::{Shape, Signed};
use crate::kit::*;

#[tokio::test]
async fn every_attack_arrives_clean_or_not_at_all() {
    let root = Signed::root(&Shape::root());
    let witness = Witness::default();
    let watching = witness.clone();
    let peer = Peer::them(&root, move |stream, _| {
        let witness = watching.clone();
        async move { witness.watch(stream).await }
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let wrong = mount(us.client, true, &them(), &witness).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    us.mesh.shutdown().await;
}
