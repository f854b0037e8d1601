//! The VPC API: nodes register, announce themselves and find each other.
//!
//! It owns what a server role needs at run time: its listener, the registry, and the way to Headscale.

mod caller;
mod census;
mod discover;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod limits;
mod nodes;
mod query;
mod register;
mod reply;
mod report;
mod requests;
mod router;
mod settle;
mod shared_key;
mod store;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::headscale::{Access, Headscale};
pub use crate::listen::Inside;
use crate::listen::{Listeners, Site};
use crate::mesh::BindError;
use crate::names::{AppId, DnsName, NodeId, NodeType};
use crate::paths::StateDir;
use crate::registry::{Change, Entry, RegistryError, RegistrySettings, Stored};
use crate::spec::{self, AllowedApps};
use census::Census;
use error::ApiError;
use limits::Limits;
use report::Reporter;
pub(crate) use requests::Requests;
use settle::{Settler, Unsettled};
use store::{Keeper, Opened, Store};

pub use router::openapi;

/// Everything the API needs to know. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiSettings {
    /// `server.api_listen`
    pub listen: SocketAddr,
    /// Who may register and ask.
    pub allowed_apps: AllowedApps,
    /// This machine's own app, which always may: its other machines join with `server_app_id = "self"`, and nobody
    /// knows its id before it is deployed. `None`: not known yet.
    pub own_app: Option<AppId>,
    /// The public URL of Headscale, or why it is not known yet.
    pub server_url: Result<String, String>,
    /// `vpn.prefix`: nodes have their addresses from it.
    pub prefix: Ipv4Net,
    /// `server.join_key_lifetime`
    pub join_key_lifetime: Duration,
    /// `server.join_key_reusable`
    pub join_key_reusable: bool,
    /// `server.requests_per_hour`: of one app; 0 is any number.
    pub requests_per_hour: u32,
    /// `server.registrations_per_hour`: of one app; 0 is any number.
    pub registrations_per_hour: u32,
    pub registry: RegistrySettings,
    /// `None`: Headscale does not run here (yet).
    pub headscale: Option<Access>,
}

impl ApiSettings {
    fn allows(&self, app: &AppId) -> bool {
        self.allowed_apps.allows(app) || self.own_app.as_ref() == Some(app)
    }
}

/// How the server side of the VPN is, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Why nodes cannot register or be found at the moment; empty: they can.
    pub problems: Vec<String>,
    /// Records in the registry.
    pub nodes: usize,
    /// Of these, how many announced themselves recently.
    pub present: usize,
}

/// A node as the command `nodes` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub id: NodeId,
    pub name: String,
    /// The app that created the record.
    pub owner: AppId,
    pub node_type: Option<NodeType>,
    pub ip: Option<Ipv4Addr>,
    pub hostname: Option<DnsName>,
    pub registered: Timestamp,
    pub last_seen: Timestamp,
    /// False: silent for too long, so it is not discovered.
    pub present: bool,
}

impl From<&Entry> for NodeRow {
    fn from(entry: &Entry) -> Self {
        let node = &entry.node;
        Self {
            id: node.id.clone(),
            name: node.name.clone(),
            owner: node.owner,
            node_type: node.node_type.clone(),
            ip: node.ip,
            hostname: node.hostname.clone(),
            registered: node.registered,
            last_seen: entry.last_seen,
            present: entry.present,
        }
    }
}

/// Open at once; each may be waiting for news.
const MAX_CONNECTIONS: usize = 16 * 1024;

/// The running API. Dropping it cuts every connection; [`Api::shutdown`] lets open requests end.
pub struct Api {
    shared: Arc<Shared>,
    listeners: Mutex<Listeners>,
    inside: Inside,
    status: watch::Receiver<ApiStatus>,
    requests: Arc<Requests>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Api {
    /// Opens the listener and starts serving. The registry and Headscale are waited for in the background: until they
    /// can be used, requests that need them answer 503, and [`Api::status`] says why.
    ///
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The listener cannot be opened; then nothing runs.
    pub fn start(settings: ApiSettings, state: &StateDir) -> Result<Self, BindError> {
        let listen = settings.listen;
        let headscale = Headscale::start(settings.headscale.clone());
        let store = watch::Sender::new(Store::Opening);
        let (settler, unsettled) = Settler::new();
        let shared = Arc::new(Shared {
            limits: ArcSwap::from_pointee(Limits::new(&settings)),
            settings: watch::Sender::new(Arc::new(settings)),
            store: store.subscribe(),
            headscale,
            census: Census::default(),
            key_makers: Semaphore::new(register::KEYS_AT_ONCE),
            unsettled,
        });
        let requests = Arc::default();
        let site = Site {
            key: "server.api_listen",
            most: MAX_CONNECTIONS,
            router: router::router(Arc::clone(&shared), &requests),
        };
        let inside = Inside::new(&site);
        let listeners = Listeners::start(listen, site)?;
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let keeper = Keeper {
            settings: shared.settings.subscribe(),
            store,
            state: state.clone(),
            cancel: cancel.clone(),
        };
        tasks.spawn(keeper.run());
        tasks.spawn(settler.run(Arc::clone(&shared), cancel.clone()));
        let (reporter, status) = Reporter::new(&shared, cancel.clone());
        tasks.spawn(reporter.run());
        Ok(Self {
            shared,
            listeners: Mutex::new(listeners),
            inside,
            status,
            requests,
            tasks,
            cancel,
        })
    }

    /// Takes over new settings. A listener that moves opens at its new address first, and the old one goes on
    /// accepting until [`Api::retire`]; everything else changes in place.
    ///
    /// # Errors
    /// The new address cannot be opened; then nothing has changed.
    pub async fn update(&self, settings: ApiSettings) -> Result<(), BindError> {
        let mut listeners = self.listeners.lock().await;
        let now = self.shared.settings();
        if now.listen != settings.listen {
            listeners.move_to(settings.listen).await?;
        }
        let limits = |settings: &ApiSettings| (settings.requests_per_hour, settings.registrations_per_hour);
        if limits(&now) != limits(&settings) {
            self.shared.limits.store(Arc::new(Limits::new(&settings)));
        }
        self.shared.headscale.update(settings.headscale.clone());
        self.shared.settings.send_if_modified(|now| {
            let is_other = **now != settings;
            if is_other {
                *now = Arc::new(settings);
            }
            is_other
        });
        Ok(())
    }

    /// A listener that was moved away from accepts nothing more; what it had accepted may end.
    pub async fn retire(&self) {
        self.listeners.lock().await.retire();
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<ApiSettings> {
        self.shared.settings()
    }

    /// Where it listens; with port 0 configured, this is the only place that tells.
    pub async fn local_addr(&self) -> SocketAddr {
        self.listeners.lock().await.addr()
    }

    /// The same API for who serves it to others, and knows who calls.
    pub fn inside(&self) -> Inside {
        self.inside.clone()
    }

    /// How the server side is, and each change of that.
    pub fn status(&self) -> watch::Receiver<ApiStatus> {
        self.status.clone()
    }

    /// What was asked since the start.
    pub(crate) fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }

    /// Every node that is not forgotten: see [`Directory::nodes`].
    ///
    /// # Errors
    /// As there.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, String> {
        self.directory().nodes().await
    }

    /// For those who want to know the nodes, whatever becomes of the API.
    pub(crate) fn directory(&self) -> Directory {
        Directory(Arc::clone(&self.shared))
    }

    /// Accepts nothing more, answers those who wait for news, lets other requests end, and closes the registry.
    pub async fn shutdown(self) {
        let mut listeners = self.listeners.lock().await;
        tokio::join!(listeners.close(), self.inside.close());
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.shared.headscale.close().await;
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The nodes that the API knows.
#[derive(Clone)]
pub(crate) struct Directory(Arc<Shared>);

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

impl Directory {
    /// Every node that is not forgotten, in the order of their ids.
    ///
    /// # Errors
    /// Why the registry cannot be used, as an operator should read it.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRow>, String> {
        let opened = self.0.opened().await.map_err(|error| match error {
            ApiError::Unavailable { cause, .. } => cause,
            other => other.to_string(),
        })?;
        tokio::task::spawn_blocking(move || opened.registry.nodes().iter().map(NodeRow::from).collect())
            .await
            .map_err(|error| error.to_string())
    }
}

/// What every request reads.
struct Shared {
    settings: watch::Sender<Arc<ApiSettings>>,
    limits: ArcSwap<Limits>,
    store: watch::Receiver<Store>,
    headscale: Headscale,
    census: Census,
    /// Who may have a key made; the others wait.
    key_makers: Semaphore,
    unsettled: Unsettled,
}

impl Shared {
    fn settings(&self) -> Arc<ApiSettings> {
        Arc::clone(&self.settings.borrow())
    }

    async fn opened(&self) -> Result<Arc<Opened>, ApiError> {
        store::opened(&self.store).await
    }

    /// Whether Headscale has a node with this address; `None` when that cannot be said.
    async fn knows(&self, address: Ipv4Addr) -> Option<bool> {
        // Of several servers, this one's Headscale need not be the one that the node joined.
        match self.settings().registry.store {
            spec::Store::Embedded => self.census.knows(&self.headscale, address).await,
            spec::Store::Etcd => None,
        }
    }

    /// Puts it into the registry of now; when that is replaced meanwhile, into the next.
    async fn put(&self, owner: AppId, id: &NodeId, change: &Change) -> Result<Stored, ApiError> {
        loop {
            let opened = self.opened().await?;
            let stored = opened.registry.put(owner, id.clone(), change.clone()).await;
            match stored {
                Err(RegistryError::Unavailable(_)) if !store::is(&self.store, &opened) => {}
                stored => return Ok(stored?),
            }
        }
    }
}
