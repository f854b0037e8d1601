//! The part that both stores share: everything that is asked is answered here, from memory.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::view::{Known, Millis, View};
use super::{Census, Entry, Listing};
use crate::names::{NodeId, NodeType};

#[derive(Debug)]
pub(super) struct Memory {
    view: RwLock<View>,
    /// Silence is measured with the clock that nobody sets; the other one is for people.
    start: Instant,
    started: Timestamp,
}

impl Memory {
    pub(super) fn new(view: View) -> Self {
        Self {
            view: RwLock::new(view),
            start: Instant::now(),
            started: Timestamp::now(),
        }
    }

    pub(super) fn now(&self) -> Millis {
        self.start.elapsed().as_millis() as Millis
    }

    /// When `millis` is, or was.
    pub(super) fn instant(&self, millis: Millis) -> Instant {
        const FAR: Millis = 365 * 24 * 3600 * 1000;
        self.start + Duration::from_millis(millis.min(self.now().saturating_add(FAR)))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn discover(&self, node_type: &NodeType) -> Listing {
        let view = self.read();
        Listing {
            index: view.index(node_type),
            nodes: view
                .discover(node_type)
                .into_iter()
                .map(|known| self.entry(known))
                .collect(),
        }
    }

    pub(super) fn nodes(&self) -> Vec<Entry> {
        self.read().all().map(|known| self.entry(known)).collect()
    }

    pub(super) fn census(&self) -> Census {
        self.read().census()
    }

    pub(super) fn node(&self, id: &NodeId) -> Option<Entry> {
        self.read().get(id).map(|known| self.entry(known))
    }

    pub(super) async fn changed(&self, node_type: &NodeType, index: u64) {
        let waiter = Waiter {
            memory: self,
            node_type,
            notify: Some(self.write().wait(node_type)),
        };
        let Some(notify) = &waiter.notify else { return };
        loop {
            let mut told = std::pin::pin!(notify.notified());
            // Told of what happens from here on, and only then a look at what is.
            told.as_mut().enable();
            if self.read().index(node_type) != index {
                return;
            }
            told.await;
        }
    }

    fn entry(&self, known: Known<'_>) -> Entry {
        let since = SignedDuration::from_millis(known.heard as i64);
        Entry {
            node: Arc::clone(known.node),
            last_seen: self.started.saturating_add(since).unwrap_or(self.started),
            present: known.present,
        }
    }
}

/// Gone when the one who waited is.
struct Waiter<'a> {
    memory: &'a Memory,
    node_type: &'a NodeType,
    notify: Option<Arc<Notify>>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(notify) = self.notify.take() {
            self.memory.write().wait_no_more(self.node_type, notify);
        }
    }
}
