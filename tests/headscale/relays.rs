//! Which relays nodes are told of.

use dstack_vpc::headscale::Headscale;
use dstack_vpc::spec::Derp;

use super::WANTED;
use super::node::Node;
use super::place::Place;
use super::rendered::derp_map;

async fn regions(derp: Derp, with_map: bool) -> Vec<String> {
    let mut place = Place::new();
    if derp == Derp::File("".into()) {
        let file = place.path().join("own-map.yaml");
        std::fs::write(&file, derp_map("derp1.example.com").to_yaml()).unwrap();
        place.spec.vpn.derp = Derp::File(file);
    } else {
        place.spec.vpn.derp = derp;
    }
    place.derp_map = with_map.then(|| derp_map("derp1.example.com"));
    place.write();
    place.start().await;
    let headscale = Headscale::start(Some(place.access()));
    let key = headscale.join_key(&WANTED).await.unwrap();
    let node = Node::start("db-1", format!("http://{}", place.addr())).await;
    node.join(&key.secret).unwrap();
    node.regions().await
}

#[tokio::test]
async fn auto_is_the_embedded_one_and_the_public_map() {
    assert_eq!(regions(Derp::Auto, true).await, ["1", "999"]);
}

#[tokio::test]
async fn auto_without_the_map_is_the_embedded_one() {
    assert_eq!(regions(Derp::Auto, false).await, ["999"]);
}

#[tokio::test]
async fn embedded_is_nothing_else() {
    assert_eq!(regions(Derp::Embedded, true).await, ["999"]);
}

#[tokio::test]
async fn public_is_the_map_alone() {
    assert_eq!(regions(Derp::Public, true).await, ["1"]);
}

#[tokio::test]
async fn a_file_is_the_map_in_it() {
    assert_eq!(regions(Derp::File("".into()), true).await, ["1"]);
}
