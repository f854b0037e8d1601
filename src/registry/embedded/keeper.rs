//! The task that owns the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::blocking;
use super::file::{NodesFile, Write1};
use crate::names::{AppId, NodeId};
use crate::registry::memory::Memory;
use crate::registry::{Change, Node, RegistryError, Stored, record};

/// At most this many writes go to the disk together.
const TOGETHER: usize = 1024;
/// A file that failed is opened again no sooner than this after the last attempt.
const REOPEN: Duration = Duration::from_secs(1);

/// Why it does not work at the moment.
pub(super) type Trouble = Arc<ArcSwapOption<String>>;

type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

pub(super) enum Job {
    Put {
        owner: AppId,
        id: NodeId,
        change: Change,
        reply: Reply<Stored>,
    },
    Secret {
        candidate: Vec<u8>,
        reply: Reply<Vec<u8>>,
    },
}

pub(super) struct Keeper {
    memory: Arc<Memory>,
    dir: PathBuf,
    /// `None` after it failed, until it could be opened again.
    file: Option<NodesFile>,
    reopen_at: Instant,
    trouble: Trouble,
}

/// What is to be written next, and who waits for it.
#[derive(Default)]
struct Batch {
    /// `None`: to be forgotten.
    nodes: BTreeMap<NodeId, Option<Node>>,
    waiting: Vec<(NodeId, Stored, Reply<Stored>)>,
}

impl Keeper {
    pub(super) fn new(memory: Arc<Memory>, dir: PathBuf, file: NodesFile, trouble: Trouble) -> Self {
        Self {
            memory,
            dir,
            file: Some(file),
            reopen_at: Instant::now(),
            trouble,
        }
    }

    /// Until `cancel`, and then until everything that was accepted is written.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Job>, cancel: CancellationToken) {
        let mut jobs = Vec::with_capacity(TOGETHER);
        loop {
            let next_due = self.memory.read().next_due();
            let due = async {
                match next_due {
                    Some(at) => sleep_until(self.memory.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = inbox.recv_many(&mut jobs, TOGETHER) => if count == 0 { return },
                () = due => {}
                () = cancel.cancelled(), if !inbox.is_closed() => inbox.close(),
            }
            self.reopen().await;
            let mut batch = Batch::default();
            self.expire(&mut batch);
            for job in jobs.drain(..) {
                match job {
                    Job::Put {
                        owner,
                        id,
                        change,
                        reply,
                    } => self.put(&mut batch, owner, id, &change, reply),
                    Job::Secret { candidate, reply } => {
                        let secret = self.on_file(move |file| file.secret(&candidate)).await;
                        let _ = reply.send(secret);
                    }
                }
            }
            self.write(batch).await;
        }
    }

    /// Who is to be forgotten is out of memory before it is off the disk: if it announces itself meanwhile, that
    /// comes here, and is written after.
    fn expire(&self, batch: &mut Batch) {
        let mut view = self.memory.write();
        let forget = view.expire(self.memory.now());
        if self.file.is_none() {
            return;
        }
        for id in forget {
            info!(node = %id, "forgotten after a long silence");
            view.remove(&id);
            batch.nodes.insert(id, None);
        }
    }

    fn put(&self, batch: &mut Batch, owner: AppId, id: NodeId, change: &Change, reply: Reply<Stored>) {
        let view = self.memory.read();
        let known = match batch.nodes.get(&id) {
            Some(staged) => staged.as_ref(),
            None => view.get(&id).map(|known| &**known.node),
        };
        let stored = known.map_or(Stored::Created, |_| Stored::Updated);
        match record::changed(known, owner, &id, change, Timestamp::now()) {
            Err(refused) => drop(reply.send(Err(refused))),
            Ok((node, differs)) => {
                if differs {
                    batch.nodes.insert(id.clone(), Some(node));
                }
                batch.waiting.push((id, stored, reply));
            }
        }
    }

    /// First to the disk, then into memory, then the answers.
    async fn write(&mut self, Batch { nodes, waiting }: Batch) {
        let encoded = |(id, node): (&NodeId, &Option<Node>)| (id.clone(), node.as_ref().map(record::encode));
        let writes: Vec<Write1> = nodes.iter().map(encoded).collect();
        let written = match writes.is_empty() {
            true => Ok(()),
            false => self.on_file(move |file| file.write(&writes)).await,
        };
        if written.is_ok() {
            let mut view = self.memory.write();
            let now = self.memory.now();
            for node in nodes.into_values().flatten() {
                view.store(node, 0, now);
            }
            for (id, ..) in &waiting {
                view.heard(id, now);
            }
        }
        for (_, stored, reply) in waiting {
            // Who does not wait any more has no need to know.
            let _ = reply.send(written.clone().map(|()| stored));
        }
    }

    /// Off the runtime. An error closes the file, because what is in it then is not known.
    async fn on_file<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&NodesFile) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let Some(file) = self.file.take() else {
            let why = self.trouble.load().as_deref().cloned();
            return Err(RegistryError::Unavailable(why.unwrap_or_default()));
        };
        let done = tokio::task::spawn_blocking(move || work(&file).map(|done| (file, done))).await;
        let why = match done {
            Ok(Ok((file, done))) => {
                self.file = Some(file);
                return Ok(done);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the write was aborted".to_owned(),
        };
        let why = format!("cannot write {}: {why}", NodesFile::path(&self.dir).display());
        self.in_trouble(why.clone());
        Err(RegistryError::Unavailable(why))
    }

    /// Brings back a file that failed. What it holds is what counts: a write that failed may have been written, and
    /// an operator may have put a backup in its place.
    async fn reopen(&mut self) {
        if self.file.is_some() || Instant::now() < self.reopen_at {
            return;
        }
        let memory = Arc::clone(&self.memory);
        let opened = blocking(&self.dir, move |dir| {
            let mut gone: BTreeSet<NodeId> = memory
                .nodes()
                .into_iter()
                .map(|entry| entry.node.id.clone())
                .collect();
            let file = NodesFile::open(dir, |node| {
                let mut view = memory.write();
                gone.remove(&node.id);
                if view.get(&node.id).is_none_or(|known| **known.node != node) {
                    let (id, now) = (node.id.clone(), memory.now());
                    view.store(node, 0, now);
                    view.heard(&id, now);
                }
            })?;
            let mut view = memory.write();
            for id in gone {
                view.remove(&id);
            }
            Ok(file)
        });
        match opened.await {
            Ok(file) => {
                info!("the registry can be written again");
                self.file = Some(file);
                self.trouble.store(None);
            }
            Err(error) => self.in_trouble(error.to_string()),
        }
    }

    fn in_trouble(&mut self, why: String) {
        self.reopen_at = Instant::now() + REOPEN;
        if self.trouble.load().as_deref() != Some(&why) {
            warn!("{why}");
            self.trouble.store(Some(Arc::new(why)));
        }
    }
}
