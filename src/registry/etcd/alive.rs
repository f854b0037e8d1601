//! `/dstack-vpc/alive/<id>`: who lives.
//!
//! A lease is shared by all nodes that may be silent for equally long and were heard in the same short time, so there
//! are a handful of leases however many nodes there are, and none is ever kept alive. A node moves to a newer lease
//! once a quarter of its silence has passed; every other sign of life stays in memory. So a node leaves discovery
//! between one and one and a half times its silence after it was last heard.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use super::client::{Client, EtcdError};
use super::wire::{Then, Txn};
use super::{ALIVE, Shared};
use crate::names::NodeId;
use crate::registry::view::Millis;
use crate::registry::{Node, RegistryError};

/// etcd takes at most 128 steps in a transaction (`--max-txn-ops`).
const TOGETHER: usize = 128;

/// A node that is to be on a fresh lease.
pub(super) struct Beat {
    id: NodeId,
    silence: Millis,
    /// `None`: nobody waits for it.
    reply: Option<oneshot::Sender<Result<(), RegistryError>>>,
}

impl Shared {
    /// The node lives: etcd is told when it was not for a while. `told`: when it was.
    pub(super) async fn beat(&self, node: &Node, told: Millis) -> Result<(), RegistryError> {
        let Some(silence) = self.memory.read().silence_of(node) else {
            return Ok(());
        };
        let fresh =
            told > 0 && self.memory.now() < told.saturating_add(quarter(silence).as_millis() as Millis);
        if fresh {
            return Ok(());
        }
        let closed = || RegistryError::Unavailable("the registry is closed".to_owned());
        let (reply, answer) = oneshot::channel();
        let beat = Beat {
            id: node.id.clone(),
            silence,
            reply: Some(reply),
        };
        self.beats.send(beat).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Writes signs of life: those that arrive while it writes are written together next.
    pub(super) async fn keep_alive(self: Arc<Self>, mut inbox: mpsc::Receiver<Beat>) {
        let mut beats = Vec::with_capacity(TOGETHER);
        while inbox.recv_many(&mut beats, TOGETHER).await > 0 {
            let nodes = beats.iter().map(|beat| (beat.id.clone(), beat.silence)).collect();
            let outcome = self.noting(self.write_alive(&nodes).await);
            for beat in beats.drain(..) {
                if let Some(reply) = beat.reply {
                    let _ = reply.send(outcome.clone());
                }
            }
        }
    }

    async fn write_alive(&self, nodes: &BTreeMap<NodeId, Millis>) -> Result<(), EtcdError> {
        loop {
            let mut then = Vec::new();
            for (id, silence) in nodes {
                then.push(Then::Put {
                    key: format!("{ALIVE}{id}"),
                    value: Vec::new(),
                    lease: self.leases.get(&self.client, *silence).await?,
                });
            }
            let txn = Txn {
                then,
                ..Txn::default()
            };
            match self.client.txn(&txn).await {
                Err(e) if e.is_not_found() => self.leases.drop_all().await,
                answer => return answer.map(drop),
            }
        }
    }

    /// Nobody could hear the nodes for a while, which is not their fault: those that left meanwhile have their time
    /// again. They are to be told to etcd, too.
    pub(super) fn give_time(&self) -> Vec<Beat> {
        let mut view = self.memory.write();
        let left = view.all().filter(|known| !known.present);
        let left: Vec<_> = left.map(|known| Arc::clone(known.node)).collect();
        let now = self.memory.now();
        let beat = |node: Arc<Node>| {
            view.heard(&node.id, now);
            let silence = view.silence_of(&node)?;
            let (id, reply) = (node.id.clone(), None);
            Some(Beat { id, silence, reply })
        };
        left.into_iter().filter_map(beat).collect()
    }

    pub(super) async fn tell(self: Arc<Self>, beats: Vec<Beat>) {
        for beat in beats {
            if self.beats.send(beat).await.is_err() {
                return;
            }
        }
    }
}

/// The leases that nodes are put on at present, by how long they may be silent, in seconds.
#[derive(Default)]
pub(super) struct Leases(Mutex<BTreeMap<u64, Lease>>);

struct Lease {
    id: u64,
    granted: Instant,
}

impl Leases {
    pub(super) async fn get(&self, client: &Client, silence: Millis) -> Result<u64, EtcdError> {
        let seconds = silence.div_ceil(1000);
        let mut leases = self.0.lock().await;
        leases.retain(|seconds, lease| lease.granted.elapsed() < quarter(*seconds * 1000));
        if let Some(lease) = leases.get(&seconds) {
            return Ok(lease.id);
        }
        let granted = Instant::now();
        let id = client.grant(seconds + 2 * quarter(silence).as_secs()).await?;
        leases.insert(seconds, Lease { id, granted });
        Ok(id)
    }

    /// One of them is gone.
    pub(super) async fn drop_all(&self) {
        self.0.lock().await.clear();
    }
}

/// In whole seconds, as leases are.
fn quarter(silence: Millis) -> Duration {
    Duration::from_secs(silence.div_ceil(4000).max(1))
}
