//! Whoever goes on looking: agents that come and go, and other wishes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dstack_vpc::agent::dev::Faults;
use dstack_vpc::facts::{Observed, Topic};
use dstack_vpc::spec::{AgentAddr, AgentChoice, GatewayChoice};

use crate::{Home, PATIENCE, app, faults, watch, whole};

#[tokio::test]
async fn an_agent_that_is_away_is_waited_for_and_told_of() {
    let home = Home::new();
    home.host_says(&[]);
    let mut watched = watch(home.spec(), home.state()).await;
    let observed = watched.until_problem(Topic::Agent, "not there").await;
    assert!(observed.problem(Topic::Agent).unwrap().retry_at.is_some());
    watched
        .until_problem(Topic::Gateway, "gateway_urls is missing")
        .await;

    let agent = home.agent(app(1), faults(|f| f.kms_down = true)).await;
    let observed = watched
        .until_problem(Topic::Identity, "refused: Failed to sign the certificate")
        .await;
    let words = &observed.problem(Topic::Identity).unwrap().message;
    assert!(words.contains("other apps cannot be called"), "{words}");
    agent.set_faults(|f| f.kms_down = false);
    let observed = watched.until("all well", whole).await;
    assert_eq!(
        watched.watcher.identity.borrow().as_ref().unwrap().dir,
        observed.identity.unwrap().dir
    );

    // Killed: the socket stays and nobody listens. What is known stays.
    agent.stop().await;
    let AgentAddr::Unix(path) = home.socket() else {
        panic!()
    };
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    watched.watcher.rescan();
    let observed = watched.until_problem(Topic::Agent, "nobody listens").await;
    assert_eq!(observed.facts.app_id.unwrap().value, app(1));
    assert!(observed.identity.is_some());
    let _agent = home.agent(app(1), Faults::default()).await;
    watched.until("well again", whole).await;
    watched.watcher.join().await;
}

#[tokio::test]
async fn only_a_difference_wakes_anybody() {
    let home = Home::new();
    let _agent = home.agent(app(1), Faults::default()).await;
    let mut watched = watch(home.spec(), home.state()).await;
    watched.until("well", whole).await;
    watched.watcher.observed.mark_unchanged();
    let oldest = || {
        let observed = watched.watcher.observed.borrow();
        let asked = |key: &str| matches!(key, "agent" | "app_id" | "gateway");
        observed
            .facts
            .rows()
            .into_iter()
            .filter(|row| asked(row.key))
            .filter_map(|row| row.age)
            .max()
            .unwrap()
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(oldest() >= Duration::from_millis(300));
        watched.watcher.rescan();
        let started = Instant::now();
        while oldest() >= started.elapsed() {
            assert!(started.elapsed() < PATIENCE, "not asked again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(!watched.watcher.observed.has_changed().unwrap());
    watched.watcher.join().await;
}

#[tokio::test]
async fn another_spec_is_followed() {
    let home = Home::new();
    let _agent = home.agent(app(1), Faults::default()).await;
    let other = Home::new();
    let _other_agent = other.agent(app(2), Faults::default()).await;
    let mut spec = home.spec();
    let mut watched = watch(spec.clone(), home.state()).await;
    watched.until("well", whole).await;

    spec.dstack.gateway_domain = GatewayChoice::Is("fixed/127.0.0.1:9".parse().unwrap());
    let at_once = watched.watcher.observed.borrow().clone().under(&spec);
    assert_eq!(
        at_once.facts.gateway.as_ref().unwrap().value.to_string(),
        "fixed/127.0.0.1:9"
    );
    let back = at_once.under(&home.spec());
    assert_eq!(back.facts.gateway, None);
    watched.spec.send_replace(Arc::new(spec.clone()));
    let gateway = |o: &Observed| {
        o.facts
            .gateway
            .as_ref()
            .map(|fact| (fact.value.to_string(), fact.source.clone()))
    };
    let wanted = Some(("fixed/127.0.0.1:9".to_owned(), "dstack.gateway_domain".to_owned()));
    watched
        .until("the gateway that is set", |o| gateway(o) == wanted)
        .await;

    home.host_says(&[]);
    spec.dstack.gateway_domain = GatewayChoice::Auto;
    watched.spec.send_replace(Arc::new(spec.clone()));
    let observed = watched
        .until_problem(Topic::Gateway, "gateway_urls is missing")
        .await;
    assert_eq!(
        observed.facts.gateway, None,
        "what the spec named stands no longer"
    );

    spec.dstack.agent = AgentChoice::At(other.socket());
    spec.nginx.program = "/bin/true".into();
    watched.spec.send_replace(Arc::new(spec));
    watched
        .until("the other agent's app", |o| {
            o.identity.as_ref().is_some_and(|i| i.app_id == Some(app(2)))
        })
        .await;
    watched
        .until("the other program", |o| o.facts.programs.nginx.is_some())
        .await;
    watched.watcher.join().await;
}
