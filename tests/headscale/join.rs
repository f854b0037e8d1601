//! Real nodes join with the keys.

use std::net::IpAddr;
use std::time::Duration;

use dstack_vpc::headscale::{Headscale, JoinKey, Settled};

use super::WANTED;
use super::common::poll;
use super::node::Node;
use super::place::{PATIENCE, Place};

#[tokio::test]
async fn a_key_is_for_one_node_and_for_its_time() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    let server = format!("http://{}", place.addr());

    let first = Node::start("db-1", server.clone()).await;
    let mongodb = JoinKey {
        node_type: Some("mongodb".parse().unwrap()),
        ..WANTED
    };
    let key = headscale.join_key(&mongodb).await.unwrap();
    first.join(&key.secret).unwrap();
    let second = Node::start("db-2", server).await;
    let refused = second.join(&key.secret).unwrap_err();
    assert!(refused.contains("already used"), "{refused}");

    let ended = JoinKey {
        lifetime: Duration::ZERO,
        ..WANTED
    };
    let key = headscale.join_key(&ended).await.unwrap();
    let refused = second.join(&key.secret).unwrap_err();
    assert!(refused.contains("expired"), "{refused}");

    let key = headscale.join_key(&WANTED).await.unwrap();
    second.join(&key.secret).unwrap();
    let nodes = headscale.nodes().await.unwrap();
    let names: Vec<_> = nodes.iter().map(|node| node.given_name.as_str()).collect();
    assert_eq!(names, ["db-1", "db-2"]);
    assert_eq!(nodes[1].join_key, Some(key.id));
    assert!(nodes.iter().all(|node| node.online), "{nodes:?}");

    // One has a tag and one has none: they see each other, by name, and meet at the embedded relay.
    for (node, other) in [
        (&first, "db-2.dstack.internal."),
        (&second, "db-1.dstack.internal."),
    ] {
        let sees = poll(PATIENCE, async || {
            let peers = node.status()["Peer"].take();
            let mut peers = peers.as_object()?.values();
            peers.find(|peer| peer["DNSName"] == other).map(drop)
        });
        assert!(sees.await.is_some(), "{other} is not seen: {}", node.status());
        assert_eq!(node.relay().await.as_deref(), Some("vpc"));
    }
}

#[tokio::test]
async fn a_machine_that_lost_its_state_gets_its_name_back() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    let server = format!("http://{}", place.addr());
    let mut keys = Vec::new();
    let mut join = async || {
        let key = headscale.join_key(&WANTED).await.unwrap();
        let node = Node::start("db-1", server.clone()).await;
        node.join(&key.secret).unwrap();
        keys.push(key.id);
        node
    };
    drop(join().await);
    let node = join().await;
    let (name, address) = node.itself();
    assert_ne!(name, "db-1.dstack.internal.");
    let address = address.parse().unwrap();

    let settled = poll(Duration::from_secs(90), async || {
        let settled = headscale.settle(&keys, address).await.unwrap();
        (settled == Settled::Done).then_some(())
    });
    settled
        .await
        .expect("the former record is taken for present no longer");
    let nodes = headscale.nodes().await.unwrap();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    assert_eq!(
        (nodes[0].given_name.as_str(), &nodes[0].ip_addresses),
        ("db-1", &vec![IpAddr::V4(address)])
    );
    let renamed = poll(PATIENCE, async || {
        (node.itself().0 == "db-1.dstack.internal.").then_some(())
    });
    renamed.await.expect("the node hears of its name");

    // What is gone can be deleted again.
    headscale.delete_node(nodes[0].id).await.unwrap();
    headscale.delete_node(nodes[0].id).await.unwrap();
    assert_eq!(headscale.nodes().await.unwrap(), []);
}
