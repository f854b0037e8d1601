//! Keeps the certificate: fetches the first one, and the next before the present one ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::backoff::Backoff;
use super::watch::{Keeper, changed};
use super::{Observed, Topic};
use crate::agent::AgentClient;
use crate::identity;
use crate::names::AppId;
use crate::spec::{AgentAddr, Spec};

/// The wall clock can jump, so nothing sleeps towards a date for longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

impl Keeper {
    /// `obtained`: when the certificate that is there already was stored.
    pub(super) async fn keep_identity(&self, mut obtained: Option<SystemTime>) {
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
                    self.publish(|observed| {
                        observed.certificates.failed += 1;
                        observed.set_problem(Topic::Identity, Some(message), Some(wait));
                    });
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                        () = changed(&mut renew) => backoff = Backoff::default(),
                    }
                    // One that was asked for is still wanted.
                    renew.mark_changed();
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
                // Nothing to do until it answers, which is told as a problem of the agent.
                None => self.tell_when_expired(now),
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
        let store = move || {
            let stored = identity::store(&state, checked, instance_id)?;
            if let Err(e) = identity::prune(&state) {
                tracing::warn!("an old certificate stays: {e}");
            }
            Ok::<_, identity::StoreError>(stored)
        };
        match tokio::task::spawn_blocking(store).await {
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
            until = jiff::Timestamp::try_from(new.not_after).ok().map(tracing::field::display),
            "a new certificate"
        );
        let source = format!("guest agent at {agent}");
        self.publish(|observed| {
            observed.certificates.obtained += 1;
            observed.take_identity(new, &source, stored.obtained);
        });
    }

    /// For while nobody can be asked: says so once the certificate has ended, and returns how long that takes.
    fn tell_when_expired(&self, now: SystemTime) -> Duration {
        let (left, is_told) = {
            let observed = self.observed.borrow();
            let left = observed
                .identity
                .as_ref()
                .map(|identity| identity.not_after.duration_since(now));
            (left, observed.problem(Topic::Identity).is_some())
        };
        match left {
            Some(Ok(left)) => left,
            Some(Err(_)) if !is_told => {
                let message = format!(
                    "no new certificate while the guest agent does not answer{}",
                    self.meanwhile()
                );
                self.publish(|observed| observed.set_problem(Topic::Identity, Some(message), None));
                LONGEST_SLEEP
            }
            _ => LONGEST_SLEEP,
        }
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
