//! The keeper of the facts, against stand-ins that come, go, and misbehave.

#[path = "common/tls.rs"]
#[allow(dead_code, unreachable_pub)]
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dstack_vpc::agent::dev::{DevAgent, Faults, LeafRequest, Machine, Options, Pki};
use dstack_vpc::facts::{self, Observed, Topic, Watcher};
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{AgentAddr, AgentChoice, GatewayChoice, Spec};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A machine's folders: the state, the host's files, and the agent's socket.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> StateDir {
        StateDir::new(self.0.path().join("state"))
    }

    fn socket(&self) -> AgentAddr {
        AgentAddr::Unix(self.0.path().join("agent.sock"))
    }

    fn spec(&self) -> Spec {
        let mut spec = dstack_vpc::spec::load(None, &BTreeMap::new()).unwrap().spec;
        spec.dstack.agent = AgentChoice::At(self.socket());
        spec.dstack.host_shared_dir = self.0.path().to_owned();
        spec.dstack.agent_timeout = Duration::from_secs(5);
        spec.nginx.program = "no-such-nginx".into();
        spec.headscale.program = "no-such-headscale".into();
        spec.supervisor.program = "no-such-supervisord".into();
        spec
    }

    fn host_says(&self, gateways: &[String]) {
        let config = serde_json::json!({"gateway_urls": gateways, "vm_config": 7});
        std::fs::write(self.0.path().join(".sys-config.json"), config.to_string()).unwrap();
    }

    /// An agent for `app` under a root that stays the same, and a gateway that the host names.
    async fn agent(&self, app: AppId, faults: Faults) -> DevAgent {
        let agent = DevAgent::start(Options {
            pki: Pki::load_or_create(self.0.path()).unwrap(),
            machines: vec![Machine {
                listen: self.socket(),
                app_id: app,
                instance_id: Some("c3000000000000000000000000000000000000c3".parse().unwrap()),
                faults,
            }],
            gateway: Some((
                SocketAddr::from(([127, 0, 0, 1], 0)),
                "apps.example.com:8443".parse().unwrap(),
            )),
        })
        .await
        .unwrap();
        self.host_says(&[format!("http://{}", agent.gateway_addr().unwrap())]);
        agent
    }
}

fn app(byte: u8) -> AppId {
    AppId::from_bytes([byte; 20])
}

fn faults(change: impl Fn(&mut Faults)) -> Faults {
    let mut faults = Faults::default();
    change(&mut faults);
    faults
}

struct Watched {
    watcher: Watcher,
    spec: watch::Sender<Arc<Spec>>,
}

async fn watch(spec: Spec, state: StateDir) -> Watched {
    let (sender, receiver) = watch::channel(Arc::new(spec));
    Watched {
        watcher: Watcher::start(receiver, state, CancellationToken::new()).await,
        spec: sender,
    }
}

impl Watched {
    /// What is observed once it is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Observed) -> bool) -> Observed {
        let mut observed = self.watcher.observed.clone();
        let result = tokio::time::timeout(PATIENCE, observed.wait_for(is_so)).await;
        match result {
            Ok(observed) => observed.unwrap().clone(),
            Err(_) => panic!("never: {what}; now {:#?}", *self.watcher.observed.borrow()),
        }
    }

    async fn until_problem(&mut self, what: Topic, words: &str) -> Observed {
        let has_it = |o: &Observed| o.problem(what).is_some_and(|p| p.message.contains(words));
        self.until(words, has_it).await
    }
}

fn whole(observed: &Observed) -> bool {
    observed.identity.is_some() && observed.facts.gateway.is_some() && observed.problems.is_empty()
}

/// Every path below with its time of change.
fn everything(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let about = entry.path().symlink_metadata().unwrap();
        found.push(format!(
            "{:?} {:?} {}",
            entry.path(),
            about.modified().unwrap(),
            about.len()
        ));
        if about.is_dir() {
            found.extend(everything(&entry.path()));
        }
    }
    found.sort();
    found
}

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

/// Serves `answer` to each connection over TLS, with a certificate of app 9 under `pki`.
async fn tls_gateway(pki: &Pki, body: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let issued = pki.issue(&app(9), &LeafRequest::both()).unwrap();
    let acceptor = tls::acceptor(&issued);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut io) = acceptor.accept(tcp).await {
                let _ = io.read(&mut [0; 4096]).await;
                let _ = io.write_all(answer.as_bytes()).await;
                let _ = io.shutdown().await;
            }
        }
    });
    (addr, task)
}

#[tokio::test]
async fn a_gateway_is_verified_when_the_root_is_known() {
    let home = Home::new();
    let _agent = home.agent(app(1), Faults::default()).await;
    let ours = Pki::load_or_create(home.0.path()).unwrap();
    for (pki, verified) in [(ours, true), (Pki::new().unwrap(), false)] {
        let (addr, task) = tls_gateway(
            &pki,
            r#"{"base_domain":"Tls.example.com.","external_port":443,"x":[]}"#,
        )
        .await;
        home.host_says(&[format!("https://{addr}/")]);
        let mut watched = watch(home.spec(), home.state()).await;
        let unverified = if verified { "" } else { " (unverified)" };
        watched.until("an identity and a gateway", whole).await;
        // The source changes without waking anybody.
        let source = || {
            watched
                .watcher
                .observed
                .borrow()
                .facts
                .gateway
                .as_ref()
                .unwrap()
                .source
                .clone()
        };
        let started = Instant::now();
        while source() != format!("gateway https://{addr}{unverified}") {
            assert!(started.elapsed() < PATIENCE, "{}", source());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        watched.watcher.join().await;
        task.abort();
    }
}

#[tokio::test]
async fn gateways_are_tried_in_turn_and_each_failure_is_told() {
    let home = Home::new();
    let agent = home.agent(app(1), Faults::default()).await;
    let good = format!("http://{}", agent.gateway_addr().unwrap());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("https://{}", listener.local_addr().unwrap())
    };
    // Accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("https://{}", silent.local_addr().unwrap());
    let pki = Pki::new().unwrap();
    let (junk, junk_task) = tls_gateway(&pki, r#"{"base_domain":"a b","external_port":443}"#).await;
    let bad = [
        closed,
        silent_url.clone(),
        format!("https://{junk}"),
        "http://127.0.0.1".to_owned(),
    ];

    home.host_says(&[&bad[..], std::slice::from_ref(&good)].concat());
    let started = Instant::now();
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert_eq!(
        observed.facts.gateway.unwrap().source,
        format!("gateway {good} (unverified)")
    );
    assert!(started.elapsed() < Duration::from_secs(8));

    agent.set_faults(|f| f.gateway_unconfigured = true);
    home.host_says(&[&bad[..], &[good]].concat());
    let observed = facts::look(&home.spec(), &home.state(), PATIENCE).await;
    assert!(observed.facts.gateway.is_none());
    let message = &observed.problem(Topic::Gateway).unwrap().message;
    for words in [
        "Connection refused",
        &format!("{silent_url}/: no answer within 5s"),
        "base_domain: expected a DNS name",
        "the gateway has no domain yet",
        "should it be https://127.0.0.1:9202?",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    drop(silent);
    junk_task.abort();
}
