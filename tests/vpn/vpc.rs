//! A VPC as users have it: one server and three nodes of two apps, each machine on a host of its own.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dstack_vpc::node::Path;
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::common::http::{self, Reply, With, get};
use crate::common::machine::Machine;
use crate::common::netns::Host;
use crate::site::{Id, Site};

/// How long the whole VPC may take to be whole (again): the test machine is small and runs other tests meanwhile.
const WHOLE: Duration = Duration::from_secs(120);

pub(crate) struct Vpc {
    pub(crate) server: Member,
    /// `db-1` and `db-2` are instances of one app, `web-1` is of another.
    pub(crate) nodes: Vec<Member>,
    /// A test failed in the middle of what it did.
    is_broken: bool,
    site: Site,
}

/// The shared VPC, for one test at a time.
pub(crate) struct Shared(OwnedMutexGuard<Vpc>);

/// One machine of the VPC.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) id: Id,
    pub(crate) machine: Machine,
    pub(crate) host: Host,
}

/// What the registry says of the nodes, by instance id.
pub(crate) type Records = BTreeMap<String, Record>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) node_type: String,
    pub(crate) address: String,
    pub(crate) hostname: String,
}

impl Vpc {
    /// Starts all machines at once: the nodes wait for the server by themselves.
    pub(crate) async fn start() -> Self {
        let site = Site::new().await;
        let server = Id::new("5e44e4", 1);
        let [db, web] = ["db", "feb"];
        let start = async |name, id: Id, toml: String| {
            let host = site.host(name, &id).await;
            let machine = site.machine(&host, &toml).spawn();
            Member {
                name,
                id,
                machine,
                host,
            }
        };
        let node = |name, id: Id, node_type| {
            let toml = format!(
                "role = \"node\"\n[node]\nname = \"{name}\"\ntype = \"{node_type}\"\n\
                 server_app_id = \"{}\"\nheartbeat = \"1s\"\nsilence = \"15s\"\n",
                server.app
            );
            start(name, id, toml)
        };
        let (db_1, db_2, web_1, server) = tokio::join!(
            node("db-1", Id::new(db, 1), "mongodb"),
            node("db-2", Id::new(db, 2), "mongodb"),
            node("web-1", Id::new(web, 1), "web"),
            start(
                "server",
                server.clone(),
                server_toml(&[&Id::new(db, 0), &Id::new(web, 0)])
            ),
        );
        let vpc = Self {
            server,
            nodes: vec![db_1, db_2, web_1],
            is_broken: false,
            site,
        };
        vpc.until_whole().await;
        vpc
    }

    /// The one that tests of faults share, whole. They wait for each other; one that fails leaves none behind.
    pub(crate) async fn shared() -> Shared {
        static SHARED: Mutex<Weak<Mutex<Vpc>>> = Mutex::const_new(Weak::new());
        static FAILED: AtomicBool = AtomicBool::new(false);
        let mut shared = SHARED.lock().await;
        if let Some(vpc) = shared.upgrade() {
            let vpc = vpc.lock_owned().await;
            if !vpc.is_broken {
                return Shared(vpc);
            }
        }
        // Waiting for that once is enough.
        assert!(
            !FAILED.swap(true, Ordering::Relaxed),
            "another test could not start the VPC"
        );
        let vpc = Arc::new(Mutex::new(Self::start().await));
        FAILED.store(false, Ordering::Relaxed);
        *shared = Arc::downgrade(&vpc);
        Shared(vpc.lock_owned().await)
    }

    /// Who vouches for the gateway's certificate.
    pub(crate) fn ca(&self) -> String {
        self.site.ca()
    }

    /// Waits until every node is registered once, in the registry and with Headscale, is found under its type, and
    /// reaches every other by name. What the registry then says.
    pub(crate) async fn until_whole(&self) -> Records {
        let whole = until(WHOLE, "the VPC is whole", || self.whole());
        match whole.await {
            Ok(records) => records,
            Err(why) => {
                for node in &self.nodes {
                    let status = node.machine.cli(&["status"]);
                    eprintln!("--- {}\n{}", node.name, String::from_utf8_lossy(&status.stdout));
                }
                panic!("{why}");
            }
        }
    }

    /// Waits until packets between two nodes go straight from one to the other.
    pub(crate) async fn until_direct(&self, from: &str, to: &str) {
        let named = |name| self.nodes.iter().find(|node| node.name == name);
        let node = named(from).expect("a node of this name");
        let direct = until(WHOLE, "the path is direct", async || {
            // Traffic is what makes them look for a better path.
            node.ping(to).await?;
            let status = node.machine.status().await.ok_or("no status")?;
            let peers = status.node.map_or(Vec::new(), |node| node.peers);
            let path = peers
                .into_iter()
                .find(|peer| peer.name == to)
                .map(|peer| peer.path);
            match path {
                Some(Path::Direct(_)) => Ok(()),
                path => Err(format!("{from} reaches {to} by {path:?}")),
            }
        });
        direct.await.expect("they are on one network");
    }

    async fn whole(&self) -> Result<Records, String> {
        let records = self.records().await?;
        let ids: Vec<_> = self.nodes.iter().map(|node| &node.id.instance).collect();
        let mut wanted = ids.clone();
        wanted.sort();
        if !records.keys().eq(wanted) {
            return Err(format!("the registry has {records:#?}"));
        }
        for node in &self.nodes {
            let record = &records[&node.id.instance];
            let own = Record {
                name: node.name.to_owned(),
                node_type: record.node_type.clone(),
                address: node.file("tailscale_ip")?,
                hostname: format!("{}.dstack.internal", node.name),
            };
            if *record != own {
                return Err(format!("{own:?} is registered as {record:?}"));
            }
        }
        self.known_to_headscale_once(&records).await?;
        for (node_type, count) in [("mongodb", 2), ("web", 1)] {
            let found = self.nodes[2].discover(self, node_type).await?;
            if found["count"] != count {
                return Err(format!("of type {node_type} there is {found}"));
            }
        }
        try_join_all(self.nodes.iter().flat_map(|from| {
            let others = self.nodes.iter().filter(|to| to.name != from.name);
            others.map(|to| from.ping(&records[&to.id.instance].hostname))
        }))
        .await?;
        Ok(records)
    }

    /// What the registry says.
    pub(crate) async fn records(&self) -> Result<Records, String> {
        let reply = self.nodes[0].ask(&self.server.id, "/api/nodes").await?;
        let nodes = reply["nodes"].as_array().ok_or(format!("no nodes in {reply}"))?;
        let records: Records = nodes
            .iter()
            .map(|node| (text(&node["uuid"]), Record::read(node)))
            .collect();
        if records.len() != nodes.len() || reply["count"] != nodes.len() {
            return Err(format!("registered twice: {reply}"));
        }
        Ok(records)
    }

    async fn known_to_headscale_once(&self, records: &Records) -> Result<(), String> {
        let nodes = self.headscale(&["nodes", "list"]).await?;
        let nodes = nodes.as_array().ok_or("no nodes")?;
        let mut known: Vec<_> = nodes.iter().map(|node| text(&node["ip_addresses"][0])).collect();
        let mut wanted: Vec<_> = records.values().map(|record| record.address.clone()).collect();
        known.sort();
        wanted.sort();
        match known == wanted && nodes.iter().all(|node| node["online"] == true) {
            true => Ok(()),
            false => Err(format!("headscale has {nodes:#?}")),
        }
    }

    /// What Headscale's own command line says.
    pub(crate) async fn headscale(&self, words: &[&str]) -> Result<Value, String> {
        self.server.headscale(words).await
    }
}

impl Deref for Shared {
    type Target = Vpc;

    fn deref(&self) -> &Vpc {
        &self.0
    }
}

impl DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Vpc {
        &mut self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.is_broken |= std::thread::panicking();
    }
}

/// A server for these apps.
pub(crate) fn server_toml(apps: &[&Id]) -> String {
    let apps: Vec<_> = apps.iter().map(|id| &id.app).collect();
    format!(
        "role = \"server\"\nallowed_apps = {apps:?}\n[vpn]\nnameservers = [\"{}\"]\n",
        crate::common::netns::Switch::ADDRESS
    )
}

impl Record {
    fn read(node: &Value) -> Self {
        Self {
            name: text(&node["name"]),
            node_type: text(&node["node_type"]),
            address: text(&node["tailscale_ip"]),
            hostname: text(&node["actual_hostname"]),
        }
    }
}

impl Member {
    /// Asks the VPC API of `server` as a local app would, through the mesh.
    pub(crate) async fn ask(&self, server: &Id, path: &str) -> Result<Value, String> {
        let request = get(path).to_app(&server.app).with("host", "vpc-server");
        read(path, self.machine.call(request).await)
    }

    pub(crate) async fn discover(&self, vpc: &Vpc, node_type: &str) -> Result<Value, String> {
        self.ask(&vpc.server.id, &format!("/api/discover/{node_type}"))
            .await
    }

    /// One of the files that local apps find in the state directory.
    pub(crate) fn file(&self, name: &str) -> Result<String, String> {
        let path = self.machine.state.root().join("vpc/0").join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// By its name in the VPN.
    pub(crate) async fn ping(&self, name: &str) -> Result<(), String> {
        self.host
            .inside
            .tell(&["ping", "-c", "1", "-W", "3", name])
            .await?;
        Ok(())
    }

    pub(crate) async fn headscale(&self, words: &[&str]) -> Result<Value, String> {
        let config = self.machine.state.current().join("headscale/headscale.yaml");
        let config = config.display().to_string();
        let words = [&["headscale", "--config", &config, "--output", "json"], words].concat();
        let said = self.host.inside.tell(&words).await?;
        serde_json::from_str(&said).map_err(|e| format!("{e}: {said}"))
    }
}

fn read(path: &str, reply: Result<Reply, http::Error>) -> Result<Value, String> {
    let reply = reply.map_err(|e| format!("{path}: {e}"))?;
    match reply.status {
        200 => Ok(reply.json()),
        status => Err(format!("{path}: {status} {}", reply.text())),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Tries until it succeeds; else the last reason why not.
pub(crate) async fn until<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(found) => return Ok(found),
            Err(why) if Instant::now() > end => {
                return Err(format!("waited {limit:?}, but not: {what}\n{why}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
