//! Making supervisord run what its file says: `supervisorctl update`, with manners.
//!
//! Unlike that command it never touches our own daemon, leaves stopped what an operator stopped, and is done
//! only when every program it started is up.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Fault, Result, Supervisor};

/// How long one program may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the order to RUNNING.
    pub start: Duration,
    /// From the order to gone; longer than the program's `stopwaitsecs`, after which it is killed.
    pub stop: Duration,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Converged {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    /// An operator had stopped them: their change waits until they are started again.
    pub left_stopped: Vec<String>,
    /// It changed, but is the one that is asking: the change comes with its next start.
    pub left_own: bool,
}

impl Supervisor {
    /// Reads the file again and carries out what differs, except for the program `own`.
    ///
    /// `ours` names programs that an earlier, interrupted run of this had stopped: finding them stopped says
    /// nothing about an operator's wish. All of it can be repeated at any point.
    pub async fn converge(&self, own: &str, ours: &BTreeSet<String>, limits: Limits) -> Result<Converged> {
        let changes = self.reload_config().await?;
        let known = self.all().await?;
        let mut done = Converged::default();

        for group in changes.removed {
            if group == own {
                done.left_own = true;
                continue;
            }
            self.forget(&group, limits.stop).await?;
            done.removed.push(group);
        }
        for group in changes.changed {
            if group == own {
                done.left_own = true;
            } else if !ours.contains(&group)
                && known.iter().any(|p| p.group == group && p.stopped_on_request())
            {
                done.left_stopped.push(group);
            } else {
                self.forget(&group, limits.stop).await?;
                self.add(&group).await?;
                done.changed.push(group);
            }
        }
        for group in changes.added {
            self.add(&group).await?;
            done.added.push(group);
        }
        for name in done.changed.iter().chain(&done.added) {
            self.wait_running(name, limits.start).await?;
        }
        Ok(done)
    }

    /// Stops and removes a group. One that is gone already is fine.
    async fn forget(&self, group: &str, within: Duration) -> Result<()> {
        match self.stop(group, Some(within)).await {
            Err(e) if e.fault() == Some(Fault::BadName) => return Ok(()),
            other => other?,
        }
        match self.remove_group(group).await {
            Err(e) if e.fault() == Some(Fault::BadName) => Ok(()),
            other => other,
        }
    }

    async fn add(&self, group: &str) -> Result<()> {
        match self.add_group(group).await {
            Err(e) if e.fault() == Some(Fault::AlreadyAdded) => Ok(()),
            other => other,
        }
    }
}
