//! The data plane: the outbound proxy, for inbound requests either the auth service that nginx asks or the whole front,
//! and TCP as it is in both directions.
//!
//! A few worker threads, each with its own single-threaded runtime and its own connection pool, so that a request
//! never crosses threads or takes a lock. Settings and identity are swapped underneath them: what runs goes on with
//! what it started with, what comes next sees the new.

mod access;
mod auth;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hop;
mod inbound;
mod line;
mod listener;
mod listeners;
mod outbound;
mod reply;
mod socket;
mod streams;
mod tally;
mod unchanged;
mod wire;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::facts::ports::{self, Holder};
use crate::identity::Identity;
use crate::listen::Inside;
use crate::names::BackendName;
use crate::spec::{AgentAddr, AllowedApps, Gateway, Limits};
use inbound::Doors;
pub use inbound::{FrontSettings, Leads, Route, Routes};
pub(crate) use listener::{Place, open};
use listeners::Listeners;
pub(crate) use outbound::{reach, without_identity};
pub use streams::{Forward, TcpBackend};
pub(crate) use tally::{CallsRead, Tallies, To};
use worker::{Crew, Threads};

/// Everything the listeners need besides the identity. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshSettings {
    pub client_listen: SocketAddr,
    pub auth_listen: SocketAddr,
    /// The built-in front; `None`: nginx is the front.
    pub front: Option<FrontSettings>,
    /// `None`: not known yet; calls to other apps answer 502 `gateway_unknown`.
    pub gateway: Option<Gateway>,
    /// `None`: no guest agent found yet.
    pub agent: Option<AgentAddr>,
    /// Backends that are reached over TCP as it is.
    pub tcp_backends: BTreeMap<BackendName, TcpBackend>,
    /// Local ports that lead to other apps.
    pub forwards: BTreeMap<BackendName, Forward>,
    /// Of these listeners those on `[::]` that leave IPv4 to another one.
    pub only_ipv6: BTreeSet<SocketAddr>,
    /// Who may call each backend.
    pub backends: BTreeMap<BackendName, AllowedApps>,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub agent_timeout: Duration,
    pub limits: Limits,
    /// A line in the log for each request, and each session of TCP.
    pub access_log: bool,
}

impl MeshSettings {
    /// Where it listens, by key.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let keyed = |role: Role| Some((role.key(), role.addr(self)?));
        Role::all(self).filter_map(keyed).collect()
    }
}

/// A listener could not be opened; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{key} = \"{addr}\" is taken by {}; choose another port, or stop what holds this one", match .holder {
        Some(holder) => holder.to_string(),
        None => "another program".into(),
    })]
    Taken {
        key: &'static str,
        addr: SocketAddr,
        holder: Option<Holder>,
    },
    #[error("{key} = \"{addr}\" cannot be opened: {source}")]
    Failed {
        key: &'static str,
        addr: SocketAddr,
        source: io::Error,
    },
    #[error("the mesh's threads could not be started: {0}")]
    Threads(io::Error),
}

impl BindError {
    /// Why `addr`, the value of `key`, could not be opened.
    fn new(key: &'static str, addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::Taken {
                key,
                addr,
                holder: ports::holder_of(addr),
            },
            _ => Self::Failed { key, addr, source },
        }
    }
}

/// What a listener serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Client,
    Auth,
    /// Local apps, at the built-in front.
    Http,
    /// Peers, at the built-in front.
    Https,
    /// Peers of a TCP backend.
    Backend(BackendName),
    /// Local apps, on their way to what a forward leads to.
    Forward(BackendName),
}

impl Role {
    const KEYS: [&'static str; 6] = [
        "mesh.client_listen",
        "mesh.auth_listen",
        "mesh.http_listen",
        "mesh.https_listen",
        "backends.listen",
        "forwards.listen",
    ];

    /// Every listener that there is with these settings.
    fn all(settings: &MeshSettings) -> impl Iterator<Item = Self> {
        let fixed = [Self::Client, Self::Auth, Self::Http, Self::Https].into_iter();
        let backends = settings.tcp_backends.keys().cloned().map(Self::Backend);
        let forwards = settings.forwards.keys().cloned().map(Self::Forward);
        let all = fixed.chain(backends).chain(forwards);
        all.filter(|role| role.place(settings).is_some())
    }

    /// The number of its key.
    fn kind(&self) -> usize {
        match self {
            Self::Client => 0,
            Self::Auth => 1,
            Self::Http => 2,
            Self::Https => 3,
            Self::Backend(_) => 4,
            Self::Forward(_) => 5,
        }
    }

    fn key(&self) -> &'static str {
        Self::KEYS[self.kind()]
    }

    /// Which of the listeners with the same key.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Backend(name) | Self::Forward(name) => Some(name.as_str()),
            _ => None,
        }
    }

    /// Bytes are passed on as they come, and nothing else is said.
    fn is_stream(&self) -> bool {
        self.name().is_some()
    }

    /// HTTP without a handshake before it.
    fn is_plain_http(&self) -> bool {
        !self.is_stream() && *self != Self::Https
    }

    /// `None`: there is no such listener.
    fn place(&self, settings: &MeshSettings) -> Option<Place> {
        let addr = self.addr(settings)?;
        let only_ipv6 = settings.only_ipv6.contains(&addr);
        Some(Place { addr, only_ipv6 })
    }

    fn addr(&self, settings: &MeshSettings) -> Option<SocketAddr> {
        let front = settings.front.as_ref();
        match self {
            Self::Client => Some(settings.client_listen),
            Self::Auth => front.is_none().then_some(settings.auth_listen),
            Self::Http => front.map(|front| front.http_listen),
            Self::Https => front.and_then(|front| front.https_listen),
            Self::Backend(name) => settings.tcp_backends.get(name).map(|it| it.listen),
            Self::Forward(name) => settings.forwards.get(name).map(|it| it.listen),
        }
    }
}

/// What all workers read.
struct Shared {
    settings: ArcSwap<MeshSettings>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    /// The VPC API, where there is one.
    api: ArcSwapOption<Inside>,
    doors: Doors,
    /// What the built-in front served last, for the requests that it still has when nginx follows it.
    last_front: ArcSwapOption<FrontSettings>,
    /// Connections of one listener that the limit of open files has room for.
    room: usize,
    tallies: Arc<Tallies>,
    /// Answers say that they are the last: nginx is about to reload.
    farewell: AtomicBool,
    /// Ends every worker, whatever it is doing.
    end: CancellationToken,
}

/// Where the listeners are; with port 0 configured, this is the only place that tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddrs {
    pub client: SocketAddr,
    /// nginx asks there.
    pub auth: Option<SocketAddr>,
    /// These two are the built-in front's.
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
}

/// The running data plane. Dropping it cuts every connection; [`Mesh::shutdown`] lets open requests end.
pub struct Mesh {
    shared: Arc<Shared>,
    crew: Crew,
    threads: Threads,
    listeners: Mutex<Listeners>,
}

impl Mesh {
    /// Opens the listeners and starts serving. `identity` may hold `None` for as long as there is none:
    /// calls to other apps answer 502 `no_identity` until then.
    ///
    /// # Errors
    /// A listener cannot be opened; then nothing runs.
    pub fn start(
        settings: MeshSettings,
        identity: watch::Receiver<Option<Arc<Identity>>>,
    ) -> Result<Self, BindError> {
        let bound = listeners::bind_all(&settings)?;
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            identity,
            api: ArcSwapOption::empty(),
            doors: Doors::default(),
            last_front: ArcSwapOption::empty(),
            room: room(),
            tallies: Arc::new(Tallies::new(worker::count())),
            farewell: AtomicBool::new(false),
            end: CancellationToken::new(),
        });
        let (crew, threads) = worker::start(&shared).map_err(BindError::Threads)?;
        let listeners = Mutex::new(Listeners::start(bound, &crew));
        Ok(Self {
            shared,
            crew,
            threads,
            listeners,
        })
    }

    /// Takes over new settings. A listener that moves opens at its new address first, and the old one goes on
    /// accepting until [`Mesh::retire`], so that its callers can follow; everything else changes in place.
    ///
    /// # Errors
    /// A new address cannot be opened; then nothing has changed.
    pub async fn update(&self, settings: MeshSettings) -> Result<(), BindError> {
        let mut listeners = self.listeners.lock().await;
        let before = self.settings();
        let moves = listeners.prepare(&before, &settings, &self.crew).await?;
        if let Some(front) = &before.front {
            self.shared.last_front.store(Some(Arc::new(front.clone())));
        }
        self.shared.settings.store(Arc::new(settings));
        listeners.carry_out(moves, &self.crew).await;
        Ok(())
    }

    /// What [`Leads::ToApi`] leads to from now on.
    pub fn publish(&self, api: Option<Inside>) {
        self.shared.api.store(api.map(Arc::new));
    }

    /// Listeners that were moved away from soon accept nothing more; what they had accepted goes on.
    pub async fn retire(&self) {
        self.listeners.lock().await.retire();
    }

    /// Listeners that were moved away from are closed when this returns; what they had accepted goes on.
    pub async fn make_room(&self) {
        self.listeners.lock().await.make_room().await;
    }

    /// Whether nginx is to end its clients' connections with the next answer on each. A reload closes every idle one,
    /// whatever its client is just sending; who was told before opens another one instead.
    pub fn bid_farewell(&self, farewell: bool) {
        self.shared.farewell.store(farewell, Ordering::Relaxed);
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<MeshSettings> {
        self.shared.settings.load_full()
    }

    /// What was counted since the start.
    pub(crate) fn tallies(&self) -> Arc<Tallies> {
        Arc::clone(&self.shared.tallies)
    }

    /// Where the listeners are now.
    pub async fn local_addrs(&self) -> LocalAddrs {
        self.listeners.lock().await.local_addrs()
    }

    /// Accepts nothing more, lets open requests end for up to the drain timeout, cuts the rest, and joins the threads.
    pub async fn shutdown(mut self) {
        let threads = std::mem::take(&mut self.threads);
        let patience = self.settings().drain_timeout;
        self.listeners.lock().await.close(patience).await;
        self.shared.end.cancel();
        threads.join().await;
    }
}

/// A request takes two descriptors, and the rest of the daemon needs some.
fn room() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(now, _)| now);
    usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(128) / 2
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}
