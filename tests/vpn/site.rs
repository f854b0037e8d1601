//! What all machines of a test share: the switch, the gateway, the KMS.

use std::sync::Mutex;

use dstack_vpc::agent::dev::{DevAgent, Faults, Machine as Agent, Options, Pki};
use dstack_vpc::spec::AgentAddr;
use tempfile::TempDir;

use crate::common::gateway::{DOMAIN, Gateway};
use crate::common::machine::{Plan, front};
use crate::common::netns::{Host, Switch};

/// A data centre.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) switch: Switch,
    pub(crate) gateway: Gateway,
    agents: Mutex<Vec<DevAgent>>,
}

/// Who a machine is: its app, and which of the app's instances.
#[derive(Clone)]
pub(crate) struct Id {
    pub(crate) app: String,
    pub(crate) instance: String,
}

impl Id {
    /// The `number`th instance of the app whose id begins with `app`.
    pub(crate) fn new(app: &str, number: u8) -> Self {
        Self {
            app: format!("{app:0<40}"),
            instance: format!("{app:0<38}{number:02x}"),
        }
    }
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vpc-site-").tempdir();
        let dir = dir.expect("a temporary directory");
        let switch = Switch::new().await;
        let gateway = Gateway::start(&switch, &dir.path().join("gateway-ca.pem"));
        let told = format!(r#"{{"gateway_urls":["https://gateway.{DOMAIN}:9202"]}}"#);
        std::fs::write(dir.path().join(".sys-config.json"), told).expect("the host's file");
        Self {
            dir,
            switch,
            gateway,
            agents: Mutex::default(),
        }
    }

    /// A host with a guest agent, known to the gateway.
    pub(crate) async fn host(&self, name: &str, id: &Id) -> Host {
        let host = self.switch.host(name).await;
        host.use_nameserver(Switch::ADDRESS).await;
        self.gateway.route(&id.app, host.ip);
        self.gateway.route(&id.instance, host.ip);
        let agent = DevAgent::start(Options {
            pki: Pki::load_or_create(self.dir.path()).expect("the root"),
            machines: vec![Agent {
                listen: AgentAddr::Unix(self.agent_socket(name)),
                app_id: id.app.parse().expect("an app id"),
                instance_id: Some(id.instance.parse().expect("an instance id")),
                faults: Faults::default(),
            }],
            gateway: None,
        });
        let agent = agent.await.expect("a guest agent");
        self.agents.lock().expect("no panic meanwhile").push(agent);
        host
    }

    /// A machine on `host` with what every machine here needs, and `toml` besides.
    pub(crate) fn machine(&self, host: &Host, toml: &str) -> Plan {
        let dstack = format!(
            "[dstack]\nagent = \"unix:{}\"\nhost_shared_dir = \"{}\"\n",
            self.agent_socket(&host.name).display(),
            self.dir.path().display()
        );
        let toml = match toml.split_once("[mesh]\n") {
            Some((before, after)) => format!("{before}[mesh]\nfront = \"{0}\"\n{after}", front()),
            None => format!("{toml}\n[mesh]\nfront = \"{}\"\n", front()),
        };
        let mut plan = Plan::in_host(host, format!("version = 1\n{toml}\n{dstack}"));
        plan.env.push(("SSL_CERT_FILE".to_owned(), self.ca()));
        plan
    }

    /// Who vouches for the gateway's certificate. Elsewhere that is a public authority.
    pub(crate) fn ca(&self) -> String {
        self.dir.path().join("gateway-ca.pem").display().to_string()
    }

    pub(crate) fn agent_socket(&self, host: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{host}.sock"))
    }
}
