//! One look, and what it leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dstack_vpc::agent::dev::Faults;
use dstack_vpc::facts::{self, Topic};

use crate::{Home, PATIENCE, app, everything, faults, whole};

#[tokio::test]
async fn a_first_look_gets_everything_and_a_later_one_remembers_it() {
    let home = Home::new();
    let spec = Arc::new(home.spec());
    let agent = home.agent(app(1), Faults::default()).await;
    let gateway = agent.gateway_addr().unwrap();
    let observed = facts::first(&spec, &home.state(), PATIENCE).await;
    assert!(whole(&observed), "{:?}", observed.problems);
    let known = observed.facts.clone();
    assert_eq!(known.app_id.as_ref().unwrap().value, app(1));
    assert_eq!(
        known.gateway.as_ref().unwrap().value.to_string(),
        "apps.example.com:8443"
    );
    assert_eq!(
        known.gateway.as_ref().unwrap().source,
        format!("gateway http://{gateway} (unverified)")
    );
    let identity = observed.identity.unwrap();
    assert_eq!(identity.dir, home.state().identity().join("000001"));
    assert_eq!(known.identity.unwrap().value.dir, identity.dir);
    let rows: Vec<_> = observed
        .facts
        .rows()
        .into_iter()
        .map(|row| (row.key, row.value, row.source))
        .collect();
    let source = format!("guest agent at {}", home.socket());
    assert!(rows.contains(&("app_id", app(1).to_string(), source)), "{rows:?}");
    assert!(
        rows.contains(&("programs.nginx", "not installed".into(), String::new())),
        "{rows:?}"
    );

    agent.stop().await;
    for inert in [true, false] {
        let before = everything(home.state().root());
        let patience = Duration::from_secs(1);
        let observed = match inert {
            true => facts::look(&spec, &home.state(), patience).await,
            false => facts::first(&spec, &home.state(), patience).await,
        };
        assert!(
            observed
                .problem(Topic::Agent)
                .unwrap()
                .message
                .contains("not there")
        );
        let words = &observed.problem(Topic::Gateway).unwrap().message;
        assert!(words.contains("Connection refused"), "{words}");
        assert_eq!(observed.identity.unwrap().dir, identity.dir);
        assert_eq!(
            observed.facts.app_id.unwrap().source,
            "remembered: the stored certificate"
        );
        assert!(observed.facts.instance_id.unwrap().is_remembered());
        assert!(observed.facts.gateway.unwrap().is_remembered());
        if inert {
            assert_eq!(everything(home.state().root()), before, "a look changes nothing");
        }
    }
}

#[tokio::test]
async fn a_look_writes_nothing_and_fetches_nothing() {
    let home = Home::new();
    let agent = home.agent(app(1), faults(|f| f.kms_down = true)).await;
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert_eq!(observed.facts.app_id.unwrap().value, app(1));
    assert!(observed.identity.is_none() && observed.problems.is_empty());
    assert!(!home.state().root().exists());

    agent.set_faults(|f| f.delay_ms = 60_000);
    let started = Instant::now();
    let observed = facts::look(&home.spec(), &home.state(), Duration::from_millis(500)).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(
        observed.problem(Topic::Agent).unwrap().message,
        "the guest agent did not answer within 0.5s"
    );
}
