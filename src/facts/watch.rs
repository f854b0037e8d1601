//! Keeps the facts: asks, asks again, and tells when one is different.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::ask::{ask_agent, ask_gateway};
use super::backoff::Backoff;
use super::programs::names_same_programs;
use super::{Observed, ProgramScanner, host_facts, remember};
use crate::identity::Identity;
use crate::node;
use crate::paths::StateDir;
use crate::spec::Spec;

/// How often the machine is looked at for programs that came or went.
const RESCAN: Duration = Duration::from_secs(30);

/// How long a reconcile waits for the versions of programs that are new in its spec. None is asked for so long; but what
/// was not looked for counts as not installed, and on a busy machine a look takes its time.
const SCAN_TIMEOUT: Duration = Duration::from_secs(30);

/// The owner of the facts: one task until it is cancelled.
pub struct Watcher {
    /// Wakes only when a value or a problem is different; ages and sources are kept up to date silently.
    pub observed: watch::Receiver<Observed>,
    /// The same certificate as in `observed`, for those who need only that.
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
    scanned: watch::Receiver<Option<Arc<Spec>>>,
    renew: watch::Sender<()>,
    rescan: watch::Sender<()>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Starts with what is remembered and stored, and asks for everything at once. Returns when the machine has
    /// been looked at, so that a program that is not in `observed` then is not installed.
    pub async fn start(spec: watch::Receiver<Arc<Spec>>, state: StateDir, cancel: CancellationToken) -> Self {
        let (recalled, obtained) = Observed::recalled(&spec.borrow(), &state);
        let first = spec.borrow().clone();
        let keeper = Keeper {
            spec,
            scanned: watch::Sender::new(None),
            state,
            identity: watch::Sender::new(recalled.identity.clone()),
            observed: watch::Sender::new(recalled),
            renew: watch::Sender::new(()),
            rescan: watch::Sender::new(()),
            cancel: cancel.clone(),
        };
        let watcher = Self {
            observed: keeper.observed.subscribe(),
            identity: keeper.identity.subscribe(),
            scanned: keeper.scanned.subscribe(),
            renew: keeper.renew.clone(),
            rescan: keeper.rescan.clone(),
            cancel,
            task: tokio::spawn(async move {
                tokio::join!(
                    keeper.keep_agent(),
                    keeper.keep_gateway(),
                    keeper.keep_identity(obtained),
                    keeper.keep_derp_map(),
                    keeper.keep_machine(),
                );
                // With the ages of now.
                keeper.remember();
            }),
        };
        watcher.has_scanned(&first).await;
        watcher
    }

    /// Fetches a new certificate now. The result is seen in `observed`: another identity, or a problem.
    pub fn renew_now(&self) {
        self.renew.send_replace(());
    }

    /// Asks for everything but a certificate now.
    pub fn rescan(&self) {
        self.rescan.send_replace(());
    }

    /// Waits until the programs that this spec names have been looked for, so that `observed` is about these. A
    /// program that does not tell its version soon is not waited for.
    pub async fn has_scanned(&self, spec: &Spec) {
        let mut scanned = self.scanned.clone();
        let is_these = |scanned: &Option<Arc<Spec>>| {
            scanned
                .as_ref()
                .is_some_and(|scanned| names_same_programs(scanned, spec))
        };
        // An error means that it was cancelled meanwhile.
        let _ = tokio::time::timeout(SCAN_TIMEOUT, scanned.wait_for(is_these)).await;
    }

    /// Ends the task and waits for it; a certificate that is being stored is stored first.
    pub async fn join(self) {
        self.cancel.cancel();
        if let Err(e) = self.task.await {
            tracing::error!(error = %e, "the keeper of the facts ended badly");
        }
    }
}

/// What the loops share; each keeps one kind of fact and all of them run in one task.
pub(super) struct Keeper {
    spec: watch::Receiver<Arc<Spec>>,
    /// For which spec programs were last looked for.
    scanned: watch::Sender<Option<Arc<Spec>>>,
    pub(super) state: StateDir,
    pub(super) observed: watch::Sender<Observed>,
    pub(super) identity: watch::Sender<Option<Arc<Identity>>>,
    pub(super) renew: watch::Sender<()>,
    pub(super) rescan: watch::Sender<()>,
    pub(super) cancel: CancellationToken,
}

impl Keeper {
    async fn keep_agent(&self) {
        let mut rescan = self.rescan.subscribe();
        let mut backoff = Backoff::default();
        loop {
            let spec = self.spec();
            let Some(answer) = self.unless_cancelled(ask_agent(&spec)).await else {
                return;
            };
            let wait = backoff.after(answer.info.is_ok());
            if self.publish(|observed| observed.take_agent(answer, Some(wait))) {
                self.remember();
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = changed(&mut rescan) => backoff = Backoff::default(),
                () = self.other_spec(|now| now.dstack != spec.dstack) => backoff = Backoff::default(),
            }
        }
    }

    async fn keep_gateway(&self) {
        let mut rescan = self.rescan.subscribe();
        let mut identity = self.identity.subscribe();
        let mut backoff = Backoff::default();
        loop {
            let spec = self.spec();
            let root = identity
                .borrow_and_update()
                .as_ref()
                .map(|identity| identity.root.clone());
            let Some(answer) = self.unless_cancelled(ask_gateway(&spec, root.as_ref())).await else {
                return;
            };
            let wait = backoff.after(answer.is_ok());
            if self.publish(|observed| observed.take_gateway(answer, Some(wait))) {
                self.remember();
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = changed(&mut rescan) => backoff = Backoff::default(),
                // With the root the gateway's certificate can be verified.
                () = changed(&mut identity) => {}
                () = self.other_spec(|now| now.dstack != spec.dstack) => backoff = Backoff::default(),
            }
        }
    }

    async fn keep_machine(&self) {
        let mut rescan = self.rescan.subscribe();
        let scanner = ProgramScanner::recalled(&self.state);
        loop {
            let spec = self.spec();
            let Some(programs) = self.unless_cancelled(scanner.scan(&spec)).await else {
                return;
            };
            let is_different = self.publish(|observed| {
                observed.facts.programs = programs;
                observed.facts.host = host_facts();
                observed.facts.plain_headscale = node::plain_headscale(&self.state);
            });
            if is_different && let Err(e) = scanner.remember(&self.state) {
                tracing::warn!(error = %e, "cannot remember the programs in {}", self.state.run().display());
            }
            self.scanned.send_replace(Some(spec.clone()));
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(RESCAN) => {}
                () = changed(&mut rescan) => {}
                () = self.other_spec(|now| *now != spec) => {}
            }
        }
    }

    fn remember(&self) {
        let facts = self.observed.borrow().facts.clone();
        if let Err(e) = remember::remember(&self.state, &facts) {
            tracing::warn!(error = %e, "cannot remember the facts in {}", self.state.run().display());
        }
    }

    /// Wakes the readers only when `change` made a difference to them, and tells whether it did.
    pub(super) fn publish(&self, change: impl FnOnce(&mut Observed)) -> bool {
        let is_different = self.observed.send_if_modified(|observed| {
            let before = observed.clone();
            change(observed);
            for new in &observed.problems {
                if before
                    .problem(new.what)
                    .is_none_or(|old| old.message != new.message)
                {
                    tracing::warn!(about = new.what.name(), "{}", new.message);
                }
            }
            for old in before
                .problems
                .iter()
                .filter(|old| observed.problem(old.what).is_none())
            {
                tracing::info!(about = old.what.name(), "well again");
            }
            observed.differs_from(&before)
        });
        let now = self.observed.borrow().identity.clone();
        self.identity.send_if_modified(|identity| {
            let is_other = identity.as_ref().map(Arc::as_ptr) != now.as_ref().map(Arc::as_ptr);
            *identity = now;
            is_other
        });
        is_different
    }

    pub(super) fn spec(&self) -> Arc<Spec> {
        self.spec.borrow().clone()
    }

    /// Returns when there is a spec for which `is_other` holds.
    pub(super) async fn other_spec(&self, is_other: impl Fn(&Arc<Spec>) -> bool) {
        if self.spec.clone().wait_for(|spec| is_other(spec)).await.is_err() {
            // Nobody will ever write another spec.
            std::future::pending().await
        }
    }

    pub(super) async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.cancel.cancelled() => None,
            result = work => Some(result),
        }
    }
}

/// Returns at the next change; never when there can be none.
pub(super) async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}
