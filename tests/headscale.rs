//! The client and its keeper against a real Headscale: `$HEADSCALE`, else the one on `PATH`.

#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "headscale/join.rs"]
mod join;
#[path = "headscale/keeper.rs"]
mod keeper;
#[path = "headscale/node.rs"]
mod node;
#[path = "headscale/place.rs"]
mod place;
#[path = "headscale/relays.rs"]
mod relays;
mod rendered;
#[path = "headscale/secrets.rs"]
mod secrets;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use dstack_vpc::headscale::{Headscale, HeadscaleError, JoinKey};
use place::Place;

const WANTED: JoinKey = JoinKey {
    lifetime: Duration::from_secs(3600),
    reusable: false,
    node_type: None,
};

#[tokio::test]
async fn the_first_start_makes_a_user_and_a_key_and_the_second_uses_them() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    assert_eq!(headscale.nodes().await.unwrap(), []);
    headscale.close().await;

    let key = place.key();
    let mode = std::fs::metadata(place.access().key_file)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let users = place.cli(&["users", "list"]);
    assert_eq!(users.as_array().unwrap().len(), 1, "{users}");
    assert_eq!(users[0]["name"], "default");

    let headscale = Headscale::start(Some(place.access()));
    headscale.join_key(&WANTED).await.unwrap();
    headscale.close().await;
    assert_eq!((place.key(), place.api_keys()), (key, 1));
}

#[tokio::test]
async fn twenty_calls_at_once_make_twenty_keys() {
    let place = Place::running().await;
    let headscale = Headscale::start(Some(place.access()));
    let calls = (0..20).map(|_| headscale.join_key(&WANTED));
    let made = futures_util::future::try_join_all(calls).await.unwrap();
    let secrets: BTreeSet<_> = made.iter().map(|key| key.secret.expose()).collect();
    let ids: BTreeSet<_> = made.iter().map(|key| key.id).collect();
    assert_eq!((secrets.len(), ids.len()), (20, 20));
    assert_eq!(format!("{:?}", made[0].secret), "Secret");
}

#[tokio::test]
async fn a_machine_without_headscale_says_so() {
    let headscale = Headscale::start(None);
    let error = headscale.join_key(&WANTED).await.unwrap_err();
    assert!(matches!(error, HeadscaleError::NotHere), "{error}");
}
