//! Telling: publishes what is so, and wakes whoever watches when there are news.

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::conditions::not_running;
use super::control::Answer;
use super::history::History;
use super::rollout::Rollout;
use super::source::Source;
use super::status::{Counters, Status};
use super::told::{Around, HISTORY, Round, Told, remember, services};
use crate::apply::Took;
use crate::paths::StateDir;
use crate::plan::Present;
use crate::spec::Spec;

/// Owns the published status.
pub(super) struct Teller {
    status: watch::Sender<Status>,
    history: History,
}

impl Teller {
    pub(super) fn new(status: watch::Sender<Status>, source: &Source, state: &StateDir) -> Self {
        let (history, events) = History::open(state, HISTORY);
        status.send_modify(|status| {
            status.history = events;
            env!("CARGO_PKG_VERSION").clone_into(&mut status.version);
            status.pid = std::process::id();
            status.started_at = Some(Timestamp::now());
            status.config.source = source.to_string();
            status.starting();
        });
        Self { status, history }
    }

    /// Publishes what an operator decided.
    pub(super) fn rollout(&mut self, rollout: &Rollout) {
        self.status.send_if_modified(|status| {
            let news = status.rollout != *rollout;
            status.rollout.clone_from(rollout);
            news
        });
    }

    /// Counts what is not a reconcile.
    pub(super) fn count(&mut self, count: impl FnOnce(&mut Counters)) {
        self.status.send_modify(|status| count(&mut status.counters));
    }

    /// Takes something into the history that is not a reconcile.
    pub(super) fn remember(&mut self, outcome: &str, cause: &str, detail: String) {
        self.status
            .send_modify(|status| remember(status, outcome, cause, detail, Took::default()));
        self.write_history(1);
    }

    /// The last `count` events go to the disk.
    fn write_history(&mut self, count: usize) {
        let status = self.status.borrow();
        let new = status.history.len().saturating_sub(count);
        status.history[new..]
            .iter()
            .for_each(|event| self.history.add(event));
    }

    /// Publishes which programs do not run, before anything is done about it.
    pub(super) fn not_running(&mut self, present: &Present) {
        self.status.send_if_modified(|status| {
            let old = status.clone();
            status.services = services(present);
            not_running(status, present);
            *status != old
        });
    }

    /// Publishes what is so now; wakes watchers only when something changed.
    pub(super) fn tell(
        &mut self,
        source: &Source,
        live: Option<&Spec>,
        present: &Present,
        around: Around<'_>,
        round: Round<'_>,
        retry: Option<Instant>,
    ) -> Answer {
        let old = self.status.borrow().clone();
        let before = old.verdict();
        let told = old.told(source, live, present, around, &round, retry);
        let Told {
            status,
            answer,
            events,
        } = told;
        if status.verdict() != before {
            let why = status.problems.first().and_then(|why| why.lines().next());
            let why = why.map(|why| format!(": {why}"));
            tracing::info!("{}{}", status.verdict().word(), why.unwrap_or_default());
        }
        self.status.send_if_modified(|old| {
            // The count of looks alone is nothing to wake anybody for.
            let mut quiet = status.clone();
            quiet.counters.reconciles = old.counters.reconciles;
            quiet.facts.clone_from(&old.facts);
            quiet.last_success = old.last_success;
            let news = quiet != *old;
            *old = status;
            news
        });
        self.write_history(events);
        answer
    }
}
