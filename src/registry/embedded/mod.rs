//! The registry in the state directory.
//!
//! One task owns the file. What arrives while it writes is written together next, so a thousand nodes that join at
//! once cost a few writes and not a thousand. What changes nothing is a heartbeat, and never gets there.

mod file;
mod keeper;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::file::NodesFile;
use self::keeper::{Job, Keeper, Trouble};
use super::memory::Memory;
use super::view::{Silence, View};
use super::{
    Census, Change, Entry, Listing, OpenError, Registry, RegistryError, RegistrySettings, Stored, record,
};
use crate::names::{AppId, NodeId, NodeType};

/// How many writes wait at most; who comes then waits for room.
const QUEUE: usize = 4096;

pub(super) struct Embedded {
    memory: Arc<Memory>,
    jobs: mpsc::Sender<Job>,
    trouble: Trouble,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Embedded {
    pub(super) async fn open(
        settings: &RegistrySettings,
        dir: &Path,
        cancel: CancellationToken,
    ) -> Result<Self, OpenError> {
        let view = View::new(settings, Silence::Timed);
        let (file, memory) = blocking(dir, move |dir| {
            let memory = Memory::new(view);
            let now = memory.now();
            let file = NodesFile::open(dir, |node| {
                let id = node.id.clone();
                let mut view = memory.write();
                view.store(node, 0, now);
                // How long we were away says nothing about the nodes.
                view.heard(&id, now);
            })?;
            Ok((file, memory))
        })
        .await?;
        let memory = Arc::new(memory);
        let trouble = Trouble::default();
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let (tasks, cancel) = (TaskTracker::new(), cancel.child_token());
        let keeper = Keeper::new(Arc::clone(&memory), dir.to_owned(), file, Arc::clone(&trouble));
        tasks.spawn(keeper.run(inbox, cancel.clone()));
        tasks.close();
        Ok(Self {
            memory,
            jobs,
            trouble,
            tasks,
            cancel,
        })
    }

    /// True: it was no more than a sign of life, and is noted.
    fn heartbeat(&self, owner: AppId, id: &NodeId, change: &Change) -> Result<bool, RegistryError> {
        let mut view = self.memory.write();
        let Some(known) = view.get(id) else {
            return Ok(false);
        };
        let now = jiff::Timestamp::now();
        let (_, differs) = record::changed(Some(known.node), owner, id, change, now)?;
        Ok(!differs && view.heard(id, self.memory.now()))
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, RegistryError>>) -> Job,
    ) -> Result<T, RegistryError> {
        let closed = || RegistryError::Unavailable("the registry is closed".to_owned());
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Registry for Embedded {
    fn put(&self, owner: AppId, id: NodeId, change: Change) -> BoxFuture<'_, Result<Stored, RegistryError>> {
        async move {
            if self.heartbeat(owner, &id, &change)? {
                return Ok(Stored::Updated);
            }
            self.ask(|reply| Job::Put {
                owner,
                id,
                change,
                reply,
            })
            .await
        }
        .boxed()
    }

    fn discover(&self, node_type: &NodeType) -> Listing {
        self.memory.discover(node_type)
    }

    fn nodes(&self) -> Vec<Entry> {
        self.memory.nodes()
    }

    fn census(&self) -> Census {
        self.memory.census()
    }

    fn node(&self, id: &NodeId) -> Option<Entry> {
        self.memory.node(id)
    }

    fn changed<'a>(&'a self, node_type: &'a NodeType, index: u64) -> BoxFuture<'a, ()> {
        self.memory.changed(node_type, index).boxed()
    }

    fn shared_secret(&self, candidate: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, RegistryError>> {
        self.ask(|reply| Job::Secret { candidate, reply }).boxed()
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.load().as_deref().cloned()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.cancel.cancel();
            self.tasks.wait().await;
        }
        .boxed()
    }
}

/// Runs what blocks; a panic in there is taken for a file that makes no sense.
async fn blocking<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let own: PathBuf = dir.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&own)).await;
    done.unwrap_or_else(|_| Err(NodesFile::unreadable(dir)))
}
