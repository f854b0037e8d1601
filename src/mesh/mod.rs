//! The data plane: the outbound proxy and the auth service for inbound requests.
//!
//! A few worker threads, each with its own single-threaded runtime and its own connection pool, so that a request
//! never crosses threads or takes a lock. Settings and identity are swapped underneath them: what runs goes on with
//! what it started with, what comes next sees the new.

mod auth;
mod listener;
mod outbound;
mod reply;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::facts::ports::{self, Holder};
use crate::identity::Identity;
use crate::names::BackendName;
use crate::spec::{AgentAddr, AllowedApps, Gateway};
use listener::{Bound, Listener};
pub(crate) use outbound::without_identity;
use worker::{Crew, Threads};

/// Everything the listeners need besides the identity. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshSettings {
    pub client_listen: SocketAddr,
    pub auth_listen: SocketAddr,
    /// `None`: not known yet; calls to other apps answer 502 `gateway_unknown`.
    pub gateway: Option<Gateway>,
    /// `None`: no guest agent found yet.
    pub agent: Option<AgentAddr>,
    /// Who may call each backend.
    pub backends: BTreeMap<BackendName, AllowedApps>,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub agent_timeout: Duration,
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
    fn new(role: Role, addr: SocketAddr, source: io::Error) -> Self {
        let key = role.key();
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Auth,
}

impl Role {
    const ALL: [Self; 2] = [Self::Client, Self::Auth];

    fn key(self) -> &'static str {
        match self {
            Self::Client => "mesh.client_listen",
            Self::Auth => "mesh.auth_listen",
        }
    }

    fn addr(self, settings: &MeshSettings) -> SocketAddr {
        match self {
            Self::Client => settings.client_listen,
            Self::Auth => settings.auth_listen,
        }
    }
}

/// What all workers read.
struct Shared {
    settings: ArcSwap<MeshSettings>,
    identity: watch::Receiver<Option<Arc<Identity>>>,
    /// Ends every worker, whatever it is doing.
    end: CancellationToken,
}

/// Where the listeners are; with port 0 configured, this is the only place that tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddrs {
    pub client: SocketAddr,
    pub auth: SocketAddr,
}

/// The running data plane. Dropping it cuts every connection; [`Mesh::shutdown`] lets open requests end.
pub struct Mesh {
    shared: Arc<Shared>,
    crew: Crew,
    threads: Threads,
    listeners: Mutex<Listeners>,
}

struct Listeners {
    /// In the order of [`Role::ALL`].
    live: [Listener; 2],
    /// Moved away from, but accepting until [`Mesh::retire`]: whoever calls them has not followed yet.
    left: Vec<(Role, Listener)>,
    /// Moved away from, still serving what they had accepted.
    draining: Vec<Listener>,
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
        let [client, auth] = Role::ALL.map(|role| listener::bind(role, role.addr(&settings)));
        let (client, auth) = (client?, auth?);
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            identity,
            end: CancellationToken::new(),
        });
        let (crew, threads) = worker::start(&shared).map_err(BindError::Threads)?;
        let live = [client, auth].map(|bound| Listener::start(bound, &crew));
        Ok(Self {
            shared,
            crew,
            threads,
            listeners: Mutex::new(Listeners {
                live,
                left: Vec::new(),
                draining: Vec::new(),
            }),
        })
    }

    /// Takes over new settings. A listener that moves opens at its new address first, and the old one goes on
    /// accepting until [`Mesh::retire`], so that its callers can follow; everything else changes in place.
    ///
    /// # Errors
    /// A new address cannot be opened; then nothing has changed.
    pub async fn update(&self, settings: MeshSettings) -> Result<(), BindError> {
        let mut listeners = self.listeners.lock().await;
        let old = self.settings();
        let moving: Vec<usize> = (0..Role::ALL.len())
            .filter(|slot| Role::ALL[*slot].addr(&old) != Role::ALL[*slot].addr(&settings))
            .collect();
        let bound = listeners.open(&moving, &settings, &self.crew).await?;

        // From here on nothing can fail.
        self.shared.settings.store(Arc::new(settings));
        for (slot, bound) in bound {
            let addr = Role::ALL[slot].addr(&self.settings());
            listeners.replace(slot, addr, bound, &self.crew);
        }
        listeners.draining.retain(|listener| !listener.is_done());
        Ok(())
    }

    /// Listeners that were moved away from accept nothing more; what they had accepted goes on for up to the
    /// drain timeout.
    pub async fn retire(&self) {
        let mut listeners = self.listeners.lock().await;
        let left = std::mem::take(&mut listeners.left);
        for (_, listener) in left {
            listener.stop();
            listeners.draining.push(listener);
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<MeshSettings> {
        self.shared.settings.load_full()
    }

    /// Where the listeners are now.
    pub async fn local_addrs(&self) -> LocalAddrs {
        let listeners = self.listeners.lock().await;
        let [client, auth] = &listeners.live;
        LocalAddrs {
            client: client.addr,
            auth: auth.addr,
        }
    }

    /// Accepts nothing more, lets open requests end for up to the drain timeout, cuts the rest, and joins the threads.
    pub async fn shutdown(mut self) {
        let threads = std::mem::take(&mut self.threads);
        let listeners = self.listeners.lock().await;
        let left = listeners.left.iter().map(|(_, listener)| listener);
        let all = || {
            listeners
                .live
                .iter()
                .chain(left.clone())
                .chain(&listeners.draining)
        };
        all().for_each(Listener::stop);
        for listener in all() {
            listener.done().await;
        }
        self.shared.end.cancel();
        threads.join().await;
    }
}

impl Listeners {
    /// Opens the new addresses of the listeners in `moving`, all or none. `None` is one that was left and is
    /// simply taken back.
    async fn open(
        &mut self,
        moving: &[usize],
        settings: &MeshSettings,
        crew: &Crew,
    ) -> Result<Vec<(usize, Option<Bound>)>, BindError> {
        let mut bound = Vec::new();
        let mut gave_way = Vec::new();
        for &slot in moving {
            let role = Role::ALL[slot];
            let addr = role.addr(settings);
            if self
                .left
                .iter()
                .any(|(left, listener)| *left == role && listener.addr == addr)
            {
                bound.push((slot, None));
                continue;
            }
            let mut opened = listener::bind(role, addr);
            if matches!(opened, Err(BindError::Taken { .. })) {
                // One that was left on that port, for the other role, has waited long enough.
                while let Some(at) = self
                    .left
                    .iter()
                    .position(|(_, left)| left.addr.port() == addr.port())
                {
                    let (_, left) = self.left.swap_remove(at);
                    left.stop();
                    left.closed().await;
                    self.draining.push(left);
                }
                opened = listener::bind(role, addr);
            }
            if matches!(opened, Err(BindError::Taken { .. })) {
                // It may be one of ours that is moving away itself: then that one goes first.
                for &other in moving {
                    let ours = &self.live[other];
                    if ours.addr.port() == addr.port() && !gave_way.contains(&other) {
                        ours.stop();
                        ours.closed().await;
                        gave_way.push(other);
                    }
                }
                opened = listener::bind(role, addr);
            }
            match opened {
                Ok(opened) => bound.push((slot, Some(opened))),
                Err(error) => {
                    drop(bound);
                    self.take_back(&gave_way, crew);
                    return Err(error);
                }
            }
        }
        Ok(bound)
    }

    /// Opens again what was closed to make way.
    fn take_back(&mut self, slots: &[usize], crew: &Crew) {
        for &slot in slots {
            match listener::bind(Role::ALL[slot], self.live[slot].addr) {
                Ok(bound) => self.replace(slot, bound.addr(), Some(bound), crew),
                Err(error) => tracing::error!(%error, "a listener that made way cannot be opened again"),
            }
        }
    }

    fn replace(&mut self, slot: usize, addr: SocketAddr, bound: Option<Bound>, crew: &Crew) {
        let role = Role::ALL[slot];
        let new = match bound {
            Some(bound) => Listener::start(bound, crew),
            None => match self
                .left
                .iter()
                .position(|(left, listener)| *left == role && listener.addr == addr)
            {
                Some(at) => self.left.swap_remove(at).1,
                None => return,
            },
        };
        let old = std::mem::replace(&mut self.live[slot], new);
        match old.is_stopped() {
            true => self.draining.push(old),
            false => self.left.push((role, old)),
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}
