//! The keeper of the facts, against stand-ins that come, go, and misbehave.

mod certificates;
mod gateways;
mod looks;
#[path = "../common/tls.rs"]
#[allow(dead_code, unreachable_pub)]
mod tls;
mod watching;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dstack_vpc::agent::dev::{DevAgent, Faults, Machine, Options, Pki};
use dstack_vpc::facts::{Observed, Topic, Watcher};
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{AgentAddr, AgentChoice, Spec};
use tempfile::TempDir;
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
