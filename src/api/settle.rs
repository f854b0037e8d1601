//! Machines that lost their state and joined anew: Headscale is to forget who they were.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::headscale::Settled;
use crate::names::NodeId;

/// More that wait are turned away: they announce themselves again soon.
const QUEUE: usize = 64;

/// Where nodes are handed in that may have left a record behind.
pub(super) type Unsettled = mpsc::Sender<NodeId>;

/// The task that looks after them, one at a time: each look is at all of Headscale's nodes.
pub(super) struct Settler {
    nodes: mpsc::Receiver<NodeId>,
    /// Up to which of its keys a node is settled.
    settled: HashMap<NodeId, u64>,
}

impl Settler {
    pub(super) fn new() -> (Self, Unsettled) {
        let (sender, nodes) = mpsc::channel(QUEUE);
        let settled = HashMap::new();
        (Self { nodes, settled }, sender)
    }

    pub(super) async fn run(mut self, shared: Arc<Shared>, cancel: CancellationToken) {
        let work = async {
            while let Some(id) = self.nodes.recv().await {
                self.settle(&shared, id).await;
            }
        };
        cancel.run_until_cancelled(work).await;
    }

    async fn settle(&mut self, shared: &Shared, id: NodeId) {
        let Ok(opened) = shared.opened().await else {
            return;
        };
        let Some(entry) = opened.registry.node(&id) else {
            return;
        };
        let (keys, Some(address)) = (&entry.node.join_keys, entry.node.ip) else {
            return;
        };
        let Some(newest) = keys.last().filter(|key| self.settled.get(&id) != Some(key)) else {
            return;
        };
        match shared.headscale.settle(keys, address).await {
            Ok(Settled::Done) => {
                self.settled.insert(id, *newest);
            }
            Ok(Settled::NotYet) => {}
            Err(error) => tracing::warn!(node = %id, "a former record with Headscale stays for now: {error}"),
        }
    }
}

/// Has it looked after in the background, when it registered more than once.
pub(super) fn hand_in(shared: &Shared, id: &NodeId) {
    let store = shared.store.borrow();
    let is_unsettled = match &*store {
        super::store::Store::Open(opened) => {
            let entry = opened.registry.node(id);
            entry.is_some_and(|entry| entry.node.join_keys.len() > 1)
        }
        _ => false,
    };
    if is_unsettled {
        // Full or at its end: it comes again with the node's next sign of life.
        let _ = shared.unsettled.try_send(id.clone());
    }
}
