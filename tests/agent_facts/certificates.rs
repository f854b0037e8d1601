//! Our own certificate: fetched, refused, renewed in time.

use std::sync::Arc;
use std::time::Duration;

use dstack_vpc::agent::dev::Faults;
use dstack_vpc::facts::{self, Observed, Topic};

use crate::{Home, PATIENCE, app, everything, faults, watch, whole};

#[tokio::test]
async fn certificates_that_are_wrong_are_told_and_not_used() {
    for (fault, words) in [
        (faults(|f| f.wrong_app = true), "is for the app eeee"),
        (faults(|f| f.broken_chain = true), "another image version"),
    ] {
        let home = Home::new();
        let agent = home.agent(app(1), fault).await;
        let mut watched = watch(home.spec(), home.state()).await;
        let observed = watched.until_problem(Topic::Identity, words).await;
        assert!(observed.identity.is_none());
        assert!(everything(&home.state().identity()).is_empty());
        agent.set_faults(|f| *f = Faults::default());
        watched.until("well", whole).await;
        watched.watcher.join().await;
    }

    let home = Home::new();
    let agent = home.agent(app(1), faults(|f| f.no_kms = true)).await;
    let mut watched = watch(home.spec(), home.state()).await;
    let observed = watched.until_problem(Topic::Identity, "made without a KMS").await;
    assert_eq!(observed.identity.unwrap().app_id, None);
    // It is stored, and the story is the same after a restart.
    watched.watcher.join().await;
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert!(observed.identity.is_some());
    assert!(
        observed
            .problem(Topic::Identity)
            .unwrap()
            .message
            .contains("made without a KMS")
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_app_is_replaced() {
    let home = Home::new();
    let agent = home.agent(app(1), Faults::default()).await;
    facts::first(&Arc::new(home.spec()), &home.state(), PATIENCE).await;
    agent.stop().await;
    let agent = home.agent(app(2), Faults::default()).await;
    let observed = facts::first(&Arc::new(home.spec()), &home.state(), PATIENCE).await;
    assert_eq!(observed.identity.as_ref().unwrap().app_id, Some(app(2)));
    assert_eq!(observed.facts.app_id.unwrap().value, app(2));
    agent.stop().await;

    // While there is no other, the wrong one is not used.
    let agent = home.agent(app(3), faults(|f| f.kms_down = true)).await;
    let mut watched = watch(home.spec(), home.state()).await;
    let observed = watched.until_problem(Topic::Identity, "Failed to sign").await;
    assert!(observed.identity.is_none() && observed.facts.identity.is_none());
    assert!(watched.watcher.identity.borrow().is_none());
    agent.set_faults(|f| f.kms_down = false);
    watched.until("well", whole).await;
    assert_eq!(
        watched.watcher.identity.borrow().as_ref().unwrap().app_id,
        Some(app(3))
    );
    watched.watcher.join().await;
}

#[tokio::test]
async fn renewed_on_demand_and_the_old_one_stays_when_that_fails() {
    let home = Home::new();
    let agent = home.agent(app(1), Faults::default()).await;
    let mut watched = watch(home.spec(), home.state()).await;
    let first = watched.until("well", whole).await.identity.unwrap();
    watched.watcher.renew_now();
    let is_new = |o: &Observed| whole(o) && o.identity.as_ref().unwrap().dir != first.dir;
    let second = watched.until("renewed", is_new).await.identity.unwrap();
    assert_ne!(first.chain[0], second.chain[0]);
    assert!(first.dir.join("key.pem").exists(), "who still uses it can");

    agent.set_faults(|f| f.kms_down = true);
    watched.watcher.renew_now();
    let observed = watched
        .until_problem(Topic::Identity, "The present certificate is valid for")
        .await;
    assert_eq!(observed.identity.unwrap().dir, second.dir);
    agent.set_faults(|f| f.kms_down = false);
    // What was asked for is still wanted.
    watched
        .until("renewed again", |o| {
            whole(o) && o.identity.as_ref().unwrap().dir != second.dir
        })
        .await;
    watched.watcher.join().await;
}

#[tokio::test]
async fn renewed_before_the_end_whatever_lifetime_the_agent_gives() {
    let home = Home::new();
    let _agent = home.agent(app(1), faults(|f| f.lifetime_s = 7)).await;
    let mut watched = watch(home.spec(), home.state()).await;
    let first = watched.until("well", whole).await.identity.unwrap();
    let is_new = |o: &Observed| {
        o.identity
            .as_ref()
            .is_some_and(|identity| identity.dir != first.dir)
    };
    watched.until("renewed", is_new).await;
    assert!(first.not_after > std::time::SystemTime::now(), "in time");
    // Neither at once nor in a loop.
    let made = std::fs::read_dir(home.state().identity()).unwrap().count();
    assert_eq!(made, 3, "two folders and the link");
    watched.watcher.join().await;
}

#[tokio::test]
async fn one_that_expires_while_the_agent_is_away_is_told_and_then_replaced() {
    let home = Home::new();
    let agent = home.agent(app(1), faults(|f| f.lifetime_s = 2)).await;
    let mut watched = watch(home.spec(), home.state()).await;
    watched.until("well", whole).await;
    agent.stop().await;
    watched.watcher.rescan();
    watched
        .until_problem(Topic::Identity, "The present certificate has expired")
        .await;
    watched.watcher.join().await;
    // Ends are whole seconds, and included.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut watched = watch(home.spec(), home.state()).await;
    let observed = watched.until_problem(Topic::Identity, "expired").await;
    assert!(observed.identity.is_none(), "not taken up again");
    let _agent = home.agent(app(1), Faults::default()).await;
    watched.until("well", whole).await;
    watched.watcher.join().await;
}
