//! Knowing at once that a supervised program ended, without asking again and again: a pidfd becomes
//! readable when its process exits.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::readable::readable;

/// Watches a changing set of processes.
pub(super) struct Children {
    /// supervisord, if it is our parent. Nobody need answer for it to be followed.
    parent: Option<i32>,
    watched: BTreeMap<i32, AbortHandle>,
    tasks: tokio::task::JoinSet<()>,
    sender: mpsc::Sender<i32>,
    ended: mpsc::Receiver<i32>,
}

impl Children {
    pub(super) fn new(parent: Option<u32>) -> Self {
        let (sender, ended) = mpsc::channel(16);
        let mut children = Self {
            parent: parent.and_then(|pid| pid.try_into().ok()),
            watched: BTreeMap::new(),
            tasks: tokio::task::JoinSet::new(),
            sender,
            ended,
        };
        children.follow([]);
        children
    }

    /// supervisord is followed as our parent.
    pub(super) fn is_of_supervisord(&self) -> bool {
        self.parent.is_some()
    }

    /// From now on these and no others, but for our parent.
    pub(super) fn follow(&mut self, pids: impl IntoIterator<Item = i32>) {
        let pids: Vec<i32> = pids.into_iter().chain(self.parent).collect();
        self.watched.retain(|pid, task| {
            let keep = pids.contains(pid);
            if !keep {
                task.abort();
            }
            keep
        });
        for pid in pids {
            if let std::collections::btree_map::Entry::Vacant(entry) = self.watched.entry(pid)
                && let Some(fd) = open(pid)
            {
                let sender = self.sender.clone();
                entry.insert(self.tasks.spawn(async move {
                    if fd.readable().await.is_ok() {
                        let _ = sender.send(pid).await;
                    }
                }));
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Ends all that is followed. At once: an nginx that drains would remove the pid file of the next one.
    pub(super) fn end(&self) {
        for pid in self.watched.keys().filter_map(|pid| Pid::from_raw(*pid)) {
            // One that has just ended by itself is fine.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// The pid of one that ended. Cancel safe.
    pub(super) async fn ended(&mut self) -> i32 {
        match self.ended.recv().await {
            Some(pid) => {
                self.watched.remove(&pid);
                pid
            }
            None => std::future::pending().await,
        }
    }
}

/// `None` where the kernel has no pidfd, or the process is gone already: the timer finds out then.
fn open(pid: i32) -> Option<AsyncFd<OwnedFd>> {
    readable(pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?)
}
