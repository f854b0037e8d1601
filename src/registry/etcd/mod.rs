//! The registry in an etcd that several servers share.
//!
//! | key | is |
//! |---|---|
//! | `/dstack-vpc/nodes/<id>` | the record, in JSON; written in transactions that fail if it is not what we think it is |
//! | `/dstack-vpc/alive/<id>` | there as long as the node is: its lease ends with the node's silence |
//! | `/dstack-vpc/servers/<id>` | there as long as a server is |
//! | `/dstack-vpc/shared_secret` | what all servers share |
//!
//! Memory follows etcd by one watch, and by nothing else: what a server writes it sees when the watch brings it, and
//! only then answers. So every server sees the same, in the same order.

mod alive;
mod client;
mod follow;
mod servers;
mod stream;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::alive::{Beat, Leases};
use self::client::{Client, EtcdError};
use self::wire::{If, Then, Txn};
use super::memory::Memory;
use super::view::{Silence, View};
use super::{
    Census, Change, Entry, Listing, Node, OpenError, Registry, RegistryError, RegistrySettings, Stored,
    record,
};
use crate::names::{AppId, NodeId, NodeType};

const ALL: &str = "/dstack-vpc/";
const NODES: &str = "/dstack-vpc/nodes/";
const ALIVE: &str = "/dstack-vpc/alive/";
const SERVERS: &str = "/dstack-vpc/servers/";
const SECRET: &str = "/dstack-vpc/shared_secret";

/// How long a writer waits until it sees its own write. After that the write is no less durable.
const SEEN: Duration = Duration::from_secs(5);

/// For a write in all. Others may be before it, and each of them waits for etcd.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Etcd {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    /// The tasks end with this, even if nobody closes it.
    _end: DropGuard,
}

/// What the tasks and the callers share.
struct Shared {
    client: Client,
    memory: Memory,
    leases: Leases,
    beats: mpsc::Sender<Beat>,
    /// The revision up to which memory knows everything.
    applied: watch::Sender<u64>,
    /// Why etcd cannot be asked.
    unreachable: ArcSwapOption<String>,
    /// Why memory does not follow.
    behind: ArcSwapOption<String>,
}

impl Etcd {
    /// Reads everything. Without etcd there is no registry: an empty one would tell nodes that there is nobody.
    pub(super) async fn open(
        settings: &RegistrySettings,
        cancel: CancellationToken,
    ) -> Result<Self, OpenError> {
        let failed = |e: EtcdError| OpenError::Etcd(e.to_string());
        let (beats, inbox) = mpsc::channel(4096);
        let shared = Arc::new(Shared {
            client: Client::new(&settings.endpoints).map_err(failed)?,
            memory: Memory::new(View::new(settings, Silence::Told)),
            leases: Leases::default(),
            beats,
            applied: watch::Sender::new(0),
            unreachable: ArcSwapOption::empty(),
            behind: ArcSwapOption::empty(),
        });
        let (tasks, cancel) = (TaskTracker::new(), cancel.child_token());
        shared.load().await.map_err(failed)?;
        let server = servers::Server::join(&shared.client).await.map_err(failed)?;
        let mut work = vec![
            Arc::clone(&shared).follow().boxed(),
            Arc::clone(&shared).keep_alive(inbox).boxed(),
            Arc::clone(&shared).forget().boxed(),
        ];
        if server.was_alone {
            work.push(Arc::clone(&shared).tell(shared.give_time()).boxed());
        }
        for task in work {
            tasks.spawn(cancel.clone().run_until_cancelled_owned(task));
        }
        tasks.spawn(server.stay(Arc::clone(&shared), tasks.clone(), cancel.clone()));
        tasks.close();
        Ok(Self {
            shared,
            tasks,
            _end: cancel.clone().drop_guard(),
            cancel,
        })
    }
}

impl Shared {
    async fn put(&self, owner: AppId, id: NodeId, change: Change) -> Result<Stored, RegistryError> {
        let known = {
            let view = self.memory.read();
            view.get(&id)
                .map(|known| (Node::clone(known.node), known.stored, known.told, known.present))
        };
        if let Some((node, _, told, true)) = &known
            && let (_, false) = record::changed(Some(node), owner, &id, &change, Timestamp::now())?
        {
            // A sign of life, as nearly every call is.
            self.beat(node, *told).await?;
            self.memory.write().heard(&id, self.memory.now());
            return Ok(Stored::Updated);
        }
        let known = known.map(|(node, revision, ..)| (node, revision));
        let (stored, revision) = self.write(owner, &id, &change, known).await?;
        self.see(revision).await;
        self.memory.write().heard(&id, self.memory.now());
        Ok(stored)
    }

    /// Writes what differs from `known`, or from what turns out to be there. Says at which revision.
    async fn write(
        &self,
        owner: AppId,
        id: &NodeId,
        change: &Change,
        mut known: Option<(Node, u64)>,
    ) -> Result<(Stored, u64), RegistryError> {
        let (key, alive) = (format!("{NODES}{id}"), format!("{ALIVE}{id}"));
        let mut tried: Option<(Node, Stored)> = None;
        loop {
            let (before, revision) = known.as_ref().map_or((None, 0), |(node, at)| (Some(node), *at));
            if let Some((node, stored)) = &tried
                && before == Some(node)
            {
                // Our own write, of which the answer was lost with the member that did it.
                return Ok((*stored, revision));
            }
            let stored = before.map_or(Stored::Created, |_| Stored::Updated);
            let (node, differs) = record::changed(before, owner, id, change, Timestamp::now())?;
            let mut then = Vec::new();
            if differs {
                then.push(Then::Put {
                    key: key.clone(),
                    value: record::encode(&node),
                    lease: 0,
                });
            }
            let silence = self.memory.read().silence_of(&node);
            if let Some(silence) = silence {
                then.push(Then::Put {
                    key: alive.clone(),
                    value: Vec::new(),
                    lease: self.noting(self.leases.get(&self.client, silence).await)?,
                });
            }
            let txn = Txn {
                when: vec![If::Revision(key.clone(), revision)],
                then,
                otherwise: vec![Then::Get { key: key.clone() }],
            };
            let answer = match self.client.txn(&txn).await {
                Err(e) if e.is_not_found() => {
                    self.leases.drop_all().await;
                    continue;
                }
                answer => self.noting(answer)?,
            };
            if answer.succeeded {
                return Ok((stored, answer.header.revision));
            }
            tried = differs.then_some((node, stored));
            known = match answer.found() {
                Some(kv) => {
                    let node = record::decode(id.as_str(), &kv.value).map_err(RegistryError::Unavailable)?;
                    Some((node, kv.mod_revision))
                }
                None => None,
            };
        }
    }

    /// Until memory knows what happened up to `revision`.
    async fn see(&self, revision: u64) {
        let mut applied = self.applied.subscribe();
        // Too late is not wrong: it is written, and will be seen.
        let _ = timeout(SEEN, applied.wait_for(|known| *known >= revision)).await;
    }

    async fn shared_secret(&self, candidate: Vec<u8>) -> Result<Vec<u8>, RegistryError> {
        let txn = Txn {
            when: vec![If::Revision(SECRET.to_owned(), 0)],
            then: vec![Then::Put {
                key: SECRET.to_owned(),
                value: candidate.clone(),
                lease: 0,
            }],
            otherwise: vec![Then::Get {
                key: SECRET.to_owned(),
            }],
        };
        let answer = self.noting(self.client.txn(&txn).await)?;
        match answer.succeeded {
            true => Ok(candidate),
            false => Ok(answer.found().map_or(candidate, |kv| kv.value)),
        }
    }

    /// Forgets, with all other servers, the nodes that are silent for too long: the first one does it.
    async fn forget(self: Arc<Self>) {
        /// How late it may be.
        const PACE: Duration = Duration::from_secs(1);
        loop {
            tokio::time::sleep(PACE).await;
            let forget = self.memory.write().expire(self.memory.now());
            for id in forget {
                let Some(stored) = self.memory.read().get(&id).map(|known| known.stored) else {
                    continue;
                };
                let key = format!("{NODES}{id}");
                let txn = Txn {
                    when: vec![
                        If::Revision(key.clone(), stored),
                        If::Revision(format!("{ALIVE}{id}"), 0),
                    ],
                    then: vec![Then::Delete { key }],
                    otherwise: Vec::new(),
                };
                // What fails comes up again.
                if self
                    .noting(self.client.txn(&txn).await)
                    .is_ok_and(|answer| answer.succeeded)
                {
                    info!(node = %id, "forgotten after a long silence");
                }
            }
        }
    }

    /// Keeps in mind whether etcd could be asked.
    fn noting<T>(&self, outcome: Result<T, EtcdError>) -> Result<T, RegistryError> {
        set_trouble(&self.unreachable, outcome.as_ref().err());
        outcome.map_err(|e| RegistryError::Unavailable(e.to_string()))
    }
}

/// Says what is new, and only that.
fn set_trouble(trouble: &ArcSwapOption<String>, error: Option<&EtcdError>) {
    match (error.map(ToString::to_string), trouble.load().as_deref()) {
        (None, None) => {}
        (None, Some(_)) => {
            info!("etcd answers again");
            trouble.store(None);
        }
        (Some(new), old) => {
            if old.is_none() {
                warn!("{new}");
            }
            trouble.store(Some(Arc::new(new)));
        }
    }
}

impl Registry for Etcd {
    fn put(&self, owner: AppId, id: NodeId, change: Change) -> BoxFuture<'_, Result<Stored, RegistryError>> {
        async move {
            if self.cancel.is_cancelled() {
                return Err(RegistryError::Unavailable("the registry is closed".to_owned()));
            }
            let put = timeout(PATIENCE, self.shared.put(owner, id, change)).await;
            let late = || {
                let why = self.trouble();
                RegistryError::Unavailable(why.unwrap_or_else(|| "etcd is too slow".to_owned()))
            };
            put.unwrap_or_else(|_| Err(late()))
        }
        .boxed()
    }

    fn discover(&self, node_type: &NodeType) -> Listing {
        self.shared.memory.discover(node_type)
    }

    fn nodes(&self) -> Vec<Entry> {
        self.shared.memory.nodes()
    }

    fn census(&self) -> Census {
        self.shared.memory.census()
    }

    fn node(&self, id: &NodeId) -> Option<Entry> {
        self.shared.memory.node(id)
    }

    fn changed<'a>(&'a self, node_type: &'a NodeType, index: u64) -> BoxFuture<'a, ()> {
        self.shared.memory.changed(node_type, index).boxed()
    }

    fn shared_secret(&self, candidate: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, RegistryError>> {
        self.shared.shared_secret(candidate).boxed()
    }

    fn trouble(&self) -> Option<String> {
        let unreachable = self.shared.unreachable.load();
        let behind = self.shared.behind.load();
        unreachable.as_deref().or(behind.as_deref()).cloned()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.cancel.cancel();
            self.tasks.wait().await;
        }
        .boxed()
    }
}
