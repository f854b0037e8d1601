//! When something that failed is tried again, and how long each step took.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{Step, Took};
use crate::facts::backoff::Backoff;

/// When something may be tried again, and why it was not done.
#[derive(Default)]
pub(super) struct Pace {
    backoff: Backoff,
    failed: Option<Failed>,
}

/// What may fail by itself, and is tried again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// Everything until the machine is in the VPN.
    Joining,
    Publishing,
    Announcing,
}

/// One for each errand.
#[derive(Default)]
pub(super) struct Paces {
    joining: Pace,
    publishing: Pace,
    announcing: Pace,
}

impl Paces {
    pub(super) fn of(&mut self, errand: Errand) -> &mut Pace {
        match errand {
            Errand::Joining => &mut self.joining,
            Errand::Publishing => &mut self.publishing,
            Errand::Announcing => &mut self.announcing,
        }
    }
}

struct Failed {
    problem: String,
    again: Instant,
    /// The same moment, for people.
    retry_at: Timestamp,
}

impl Pace {
    /// How long it has to wait still; `None`: not at all.
    pub(super) fn wait(&self) -> Option<Duration> {
        let again = self.failed.as_ref()?.again;
        again
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// Why it was not done, and when it is tried again.
    pub(super) fn failure(&self) -> Option<(String, Timestamp)> {
        let failed = self.failed.as_ref()?;
        Some((failed.problem.clone(), failed.retry_at))
    }

    pub(super) fn failed(&mut self, problem: String) {
        let wait = self.backoff.after(false);
        let retry_at = Timestamp::now() + SignedDuration::try_from(wait).unwrap_or_default();
        self.failed = Some(Failed {
            problem,
            again: Instant::now() + wait,
            retry_at,
        });
    }

    /// One act succeeded. That the next one will is not known: waits go on growing until [`Pace::default`].
    pub(super) fn succeeded(&mut self) {
        self.failed = None;
    }
}

/// Measures the steps of a joining.
pub(super) struct Clock {
    step: Step,
    since: Instant,
    took: Vec<Took>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            step: Step::default(),
            since: Instant::now(),
            took: Vec::new(),
        }
    }
}

impl Clock {
    /// Goes on to `step`, unless it is there already. Returns how long it has been in it.
    pub(super) fn enter(&mut self, step: Step) -> Duration {
        if step == self.step {
            return self.since.elapsed();
        }
        match self.step {
            // A new joining begins.
            Step::Joined => self.took.clear(),
            former => self.add(former),
        }
        self.step = step;
        self.since = Instant::now();
        Duration::ZERO
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// What the steps so far took, in their order; one that was taken more than once counts in all.
    pub(super) fn took(&self) -> &[Took] {
        &self.took
    }

    fn add(&mut self, step: Step) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.took.iter_mut().find(|took| took.step == step) {
            Some(took) => took.ms = took.ms.saturating_add(ms),
            None => self.took.push(Took { step, ms }),
        }
    }
}
