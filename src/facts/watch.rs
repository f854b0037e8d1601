//! Keeps the facts: asks, asks again, and tells when one is different.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::ask::{ask_agent, ask_gateway};
use super::{Observed, ProgramScanner, Topic, host_facts, remember};
use crate::agent::AgentClient;
use crate::identity::{self, Identity};
use crate::names::AppId;
use crate::paths::StateDir;
use crate::spec::{AgentAddr, Spec};

/// How long a good answer of the agent or the gateway stands before it is asked for again.
const REFRESH: Duration = Duration::from_secs(60);

/// How often the machine is looked at for programs that came or went.
const RESCAN: Duration = Duration::from_secs(30);

/// The wall clock can jump, so nothing sleeps towards a date for longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The owner of the facts: one task until it is cancelled.
pub struct Watcher {
    /// Wakes only when a value or a problem is different; ages and sources are kept up to date silently.
    pub observed: watch::Receiver<Observed>,
    /// The same certificate as in `observed`, for those who need only that.
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
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
        let keeper = Keeper {
            spec,
            state,
            identity: watch::Sender::new(recalled.identity.clone()),
            observed: watch::Sender::new(recalled),
            renew: watch::Sender::new(()),
            rescan: watch::Sender::new(()),
            cancel: cancel.clone(),
        };
        let (looked, first_look) = oneshot::channel();
        let watcher = Self {
            observed: keeper.observed.subscribe(),
            identity: keeper.identity.subscribe(),
            renew: keeper.renew.clone(),
            rescan: keeper.rescan.clone(),
            cancel,
            task: tokio::spawn(async move {
                tokio::join!(
                    keeper.keep_agent(),
                    keeper.keep_gateway(),
                    keeper.keep_identity(obtained),
                    keeper.keep_machine(looked),
                );
                // With the ages of now.
                keeper.remember();
            }),
        };
        // An error means that it was cancelled meanwhile.
        let _ = first_look.await;
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

    /// Ends the task and waits for it; a certificate that is being stored is stored first.
    pub async fn join(self) {
        self.cancel.cancel();
        if let Err(e) = self.task.await {
            tracing::error!(error = %e, "the keeper of the facts ended badly");
        }
    }
}

struct Keeper {
    spec: watch::Receiver<Arc<Spec>>,
    state: StateDir,
    observed: watch::Sender<Observed>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    renew: watch::Sender<()>,
    rescan: watch::Sender<()>,
    cancel: CancellationToken,
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

    async fn keep_machine(&self, looked: oneshot::Sender<()>) {
        let mut looked = Some(looked);
        let mut rescan = self.rescan.subscribe();
        let scanner = ProgramScanner::default();
        loop {
            let spec = self.spec();
            let Some(programs) = self.unless_cancelled(scanner.scan(&spec)).await else {
                return;
            };
            self.publish(|observed| {
                observed.facts.programs = programs;
                observed.facts.host = host_facts();
            });
            if let Some(looked) = looked.take() {
                let _ = looked.send(());
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(RESCAN) => {}
                () = changed(&mut rescan) => {}
                () = self.other_spec(|now| *now != spec) => {}
            }
        }
    }

    /// `obtained`: when the certificate that is there already was stored.
    async fn keep_identity(&self, mut obtained: Option<SystemTime>) {
        let mut renew = self.renew.subscribe();
        let mut backoff = Backoff::default();
        while let Some((agent, app_id)) = self.when_due(&mut renew, obtained).await {
            let policy = self.spec().identity.clone();
            let fetching = identity::fetch(&agent, Some(app_id), &policy);
            let Some(fetched) = self.unless_cancelled(fetching).await else {
                return;
            };
            let stored = match fetched {
                Ok(checked) => self.store(checked).await,
                Err(e) => Err(e.to_string()),
            };
            let wait = backoff.after(stored.is_ok());
            match stored {
                Ok(stored) => {
                    obtained = Some(stored.obtained);
                    self.publish_identity(stored, agent.addr());
                }
                Err(message) => {
                    let message = message + &self.meanwhile();
                    self.publish(|observed| observed.set_problem(Topic::Identity, Some(message), Some(wait)));
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                        () = changed(&mut renew) => {
                            renew.mark_changed();
                            backoff = Backoff::default();
                        }
                    }
                }
            }
        }
    }

    /// The agent to ask, once a certificate is due or asked for and the agent answers; `None` when cancelled.
    async fn when_due(
        &self,
        renew: &mut watch::Receiver<()>,
        obtained: Option<SystemTime>,
    ) -> Option<(AgentClient, AppId)> {
        let mut observed = self.observed.subscribe();
        let mut asked = false;
        loop {
            let spec = self.spec();
            let now = SystemTime::now();
            let (agent, due) = {
                let observed = observed.borrow_and_update();
                (answering_agent(&observed), due(&observed, &spec, obtained))
            };
            let wait = match agent {
                Some((addr, app_id)) if asked || due <= now => {
                    return Some((AgentClient::new(addr, spec.dstack.agent_timeout), app_id));
                }
                Some(_) => due.duration_since(now).unwrap_or_default(),
                // Nothing to do until it answers; that problem is told already.
                None => LONGEST_SLEEP,
            };
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
                () = changed(&mut observed) => {}
                () = changed(renew) => asked = true,
                () = self.other_spec(|now| now.identity != spec.identity) => {}
            }
        }
    }

    async fn store(&self, checked: identity::Checked) -> Result<identity::Stored, String> {
        let instance_id = self
            .observed
            .borrow()
            .facts
            .instance_id
            .as_ref()
            .map(|fact| fact.value);
        let state = self.state.clone();
        // On its own thread for the fsyncs, and not cut short when cancelled.
        match tokio::task::spawn_blocking(move || identity::store(&state, checked, instance_id)).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(e) => Err(format!("storing the certificate failed: {e}")),
        }
    }

    fn publish_identity(&self, stored: identity::Stored, agent: &AgentAddr) {
        let new = Arc::new(stored.identity);
        if self
            .identity
            .borrow()
            .as_ref()
            .is_some_and(|old| old.root != new.root)
        {
            tracing::warn!(
                "the new certificate has another KMS root: apps of the former KMS are strangers now"
            );
        }
        tracing::info!(
            dir = %new.dir.display(),
            app_id = new.app_id.map(tracing::field::display),
            days = new.not_after.duration_since(stored.obtained).unwrap_or_default().as_secs() / 86_400,
            "a new certificate"
        );
        let source = format!("guest agent at {agent}");
        self.publish(|observed| observed.take_identity(new, &source, stored.obtained));
    }

    /// What a failed renewal means until the next attempt.
    fn meanwhile(&self) -> String {
        let left = match &*self.identity.borrow() {
            Some(identity) => identity.not_after.duration_since(SystemTime::now()),
            None => return ". Until there is one, other apps cannot be called or call this one".to_owned(),
        };
        match left {
            Ok(left) => format!(
                ". The present certificate is valid for {} h more",
                left.as_secs() / 3600
            ),
            Err(_) => ". The present certificate has expired, so other apps refuse it".to_owned(),
        }
    }

    fn remember(&self) {
        let facts = self.observed.borrow().facts.clone();
        if let Err(e) = remember::remember(&self.state, &facts) {
            tracing::warn!(error = %e, "cannot remember the facts in {}", self.state.run().display());
        }
    }

    /// Wakes the readers only when `change` made a difference to them, and tells whether it did.
    fn publish(&self, change: impl FnOnce(&mut Observed)) -> bool {
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

    fn spec(&self) -> Arc<Spec> {
        self.spec.borrow().clone()
    }

    /// Returns when there is a spec for which `is_other` holds.
    async fn other_spec(&self, is_other: impl Fn(&Arc<Spec>) -> bool) {
        if self.spec.clone().wait_for(|spec| is_other(spec)).await.is_err() {
            // Nobody will ever write another spec.
            std::future::pending().await
        }
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.cancel.cancelled() => None,
            result = work => Some(result),
        }
    }
}

/// The agent that answered last time it was asked, and whose agent it says it is.
fn answering_agent(observed: &Observed) -> Option<(AgentAddr, AppId)> {
    let agent = observed.facts.agent.as_ref()?;
    let app_id = observed
        .facts
        .app_id
        .as_ref()
        .filter(|fact| !fact.is_remembered())?;
    observed
        .problem(Topic::Agent)
        .is_none()
        .then(|| (agent.value.clone(), app_id.value))
}

/// When to fetch a certificate: at once when there is none, or one of another app.
fn due(observed: &Observed, spec: &Spec, obtained: Option<SystemTime>) -> SystemTime {
    let app_id = observed.facts.app_id.as_ref().map(|fact| fact.value);
    match (&observed.identity, obtained) {
        (Some(identity), Some(obtained)) if identity.app_id.is_none() || identity.app_id == app_id => {
            identity::renew_at(&identity.chain[0], obtained, identity.not_after, &spec.identity)
        }
        _ => SystemTime::UNIX_EPOCH,
    }
}

/// Returns at the next change; never when there can be none.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}

/// How long to wait after an attempt: first short, then longer, never in step with other machines.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    fn after(&mut self, success: bool) -> Duration {
        let wait = if success {
            self.failures = 0;
            REFRESH
        } else {
            self.failures = self.failures.saturating_add(1);
            let doubled = Self::FIRST.saturating_mul(1 << (self.failures - 1).min(16));
            doubled.min(Self::LONGEST)
        };
        wait.mul_f64(0.75 + 0.25 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..60).map(|_| backoff.after(false)).collect();
        assert!(waits[0] <= Duration::from_millis(200) && waits[0] >= Duration::from_millis(150));
        assert!(waits[59] <= Duration::from_secs(30) && waits[59] >= Duration::from_secs(22));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
        assert!(backoff.after(true) > Duration::from_secs(40));
        assert!(backoff.after(false) <= Duration::from_millis(200));
    }
}
