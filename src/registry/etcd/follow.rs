//! Memory follows etcd: once everything, then every change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::client::EtcdError;
use super::servers::PULSE;
use super::wire::{Event, EventKind, Keys, Kv};
use super::{ALIVE, ALL, NODES, Shared, set_trouble};
use crate::names::NodeId;
use crate::registry::record;

/// Our own pulse comes through the watch. A watch without it is dead, or at a member that lost the others.
const DEAD: Duration = PULSE.saturating_mul(3);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a watch ended.
enum End {
    /// It goes on where it was.
    Broken(EtcdError),
    /// It cannot go on there: everything is read anew.
    Lost(EtcdError),
}

impl Shared {
    /// For ever, after [`Shared::load`].
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            let (lost, error) = match self.follow_one_watch().await {
                End::Broken(error) => (false, error),
                End::Lost(error) => (true, error),
            };
            set_trouble(&self.behind, Some(&error));
            sleep(PAUSE).await;
            self.client.prefer_another();
            if lost && self.load().await.is_ok() {
                info!("read everything that etcd has");
            }
        }
    }

    async fn follow_one_watch(&self) -> End {
        let start = *self.applied.borrow() + 1;
        let mut watch = match self.client.watch(&Keys::below(ALL), start).await {
            Ok(watch) => watch,
            Err(error) => return End::Broken(error),
        };
        loop {
            match timeout(DEAD, watch.next()).await {
                Ok(Ok(events)) => self.apply(events),
                Ok(Err(EtcdError::Compacted)) => return End::Lost(EtcdError::Compacted),
                Ok(Err(error)) => return End::Broken(error),
                // Perhaps etcd is another one, restored from a backup, and counts from there.
                Err(_) => {
                    return End::Lost(EtcdError::Unreachable("the watch is silent".to_owned()));
                }
            }
            set_trouble(&self.behind, None);
        }
    }

    fn apply(&self, events: Vec<Event>) {
        let Some(revision) = events.iter().map(|event| event.kv.mod_revision).max() else {
            return;
        };
        let mut view = self.memory.write();
        let now = self.memory.now();
        for Event { kind, kv } in events {
            if let Some(id) = id_below(NODES, &kv) {
                match kind {
                    EventKind::Delete => drop(view.remove(&id)),
                    EventKind::Put => match record::decode(id.as_str(), &kv.value) {
                        Ok(node) => view.store(node, kv.mod_revision, now),
                        Err(why) => warn!("{why}"),
                    },
                }
            } else if let Some(id) = id_below(ALIVE, &kv) {
                match kind {
                    EventKind::Put => view.told(&id, now),
                    EventKind::Delete => view.silent(&id),
                }
            }
        }
        drop(view);
        self.applied.send_replace(revision);
    }

    /// Reads everything at one revision, and makes memory that.
    pub(super) async fn load(&self) -> Result<(), EtcdError> {
        let ids = |of: &dyn Fn(bool) -> bool| -> BTreeSet<NodeId> {
            let view = self.memory.read();
            view.all()
                .filter(|known| of(known.present))
                .map(|known| known.node.id.clone())
                .collect()
        };
        let (mut gone, mut silent) = (ids(&|_| true), ids(&|present| present));
        let now = self.memory.now();
        let store = |kv: Kv| {
            let Some(id) = id_below(NODES, &kv) else { return };
            gone.remove(&id);
            match record::decode(id.as_str(), &kv.value) {
                Ok(node) => {
                    let mut view = self.memory.write();
                    if view.get(&id).is_none_or(|known| known.stored != kv.mod_revision) {
                        view.store(node, kv.mod_revision, now);
                    }
                }
                Err(why) => warn!("{why}"),
            }
        };
        let revision = self.client.range(&Keys::below(NODES), 0, false, store).await?;
        let alive = |kv: Kv| {
            let Some(id) = id_below(ALIVE, &kv) else { return };
            silent.remove(&id);
            self.memory.write().heard(&id, now);
        };
        self.client
            .range(&Keys::below(ALIVE), revision, true, alive)
            .await?;
        let mut view = self.memory.write();
        silent.iter().for_each(|id| view.silent(id));
        gone.iter().for_each(|id| drop(view.remove(id)));
        drop(view);
        self.applied.send_replace(revision);
        Ok(())
    }
}

fn id_below(prefix: &str, kv: &Kv) -> Option<NodeId> {
    kv.key.strip_prefix(prefix)?.parse().ok()
}
