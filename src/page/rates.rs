//! How the mesh does: what the metrics count, and how fast it grows.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::mesh::{CallsRead, Tallies};

/// Rates are over this time, as far as somebody looked before.
const WINDOW: Duration = Duration::from_secs(60);
/// Of looks in quick succession one is remembered.
const APART: Duration = Duration::from_secs(5);

/// What was counted at earlier looks: nobody looking costs nothing.
pub(super) struct Rates(VecDeque<(Instant, BTreeMap<String, Sums>)>);

/// Requests to one target, and how many of them failed.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    requests: u64,
    errors: u64,
}

/// All of it at one moment.
#[derive(Debug)]
pub(super) struct Mesh {
    /// The rates are over this time.
    pub(super) over: Duration,
    /// In the order of requests, the most first.
    pub(super) targets: Vec<Target>,
    pub(super) callers: Vec<Callers>,
    pub(super) sessions: Vec<Sessions>,
}

#[derive(Debug)]
pub(super) struct Target {
    /// An app id, or what [`Tallies::calls`] calls it.
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) errors: u64,
    /// In a second.
    pub(super) request_rate: f64,
    pub(super) error_rate: f64,
    /// How often each error was.
    pub(super) failed: Vec<(&'static str, u64)>,
    /// In bytes.
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What was decided about those who call a backend.
#[derive(Debug, Default)]
pub(super) struct Callers {
    pub(super) backend: String,
    pub(super) allowed: u64,
    pub(super) refused: Vec<(&'static str, u64)>,
}

/// A TCP backend or a forward.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) open: u64,
    pub(super) ended: Vec<(&'static str, u64)>,
    /// In bytes.
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Rates {
    /// Nothing is known of the time before.
    pub(super) fn since_now(tallies: &Tallies) -> Self {
        Self(VecDeque::from([(Instant::now(), sums(&tallies.calls()))]))
    }

    /// What is counted now, compared with what was when somebody looked about a minute ago.
    pub(super) fn look(&mut self, tallies: &Tallies) -> Mesh {
        let (now, calls) = (Instant::now(), tallies.calls());
        let sums = sums(&calls);
        // The second is old enough: the first is no longer needed.
        while self.0.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.0.pop_front();
        }
        let (over, before) = match self.0.front() {
            Some((at, before)) => (now - *at, before.clone()),
            None => Default::default(),
        };
        if self.0.back().is_none_or(|(at, _)| now - *at >= APART) {
            self.0.push_back((now, sums));
        }
        Mesh {
            over,
            targets: targets(calls, &before, over),
            callers: callers(tallies),
            sessions: sessions(tallies),
        }
    }
}

fn sums(calls: &[(String, CallsRead)]) -> BTreeMap<String, Sums> {
    let sums = calls.iter().map(|(name, calls)| (name.clone(), Sums::of(calls)));
    sums.collect()
}

impl Sums {
    fn of(calls: &CallsRead) -> Self {
        Self {
            requests: calls.outcomes.values().sum(),
            errors: errors(calls).iter().map(|(_, n)| n).sum(),
        }
    }
}

/// What a target answers below 500 is its own affair; all else failed, there or on the way.
fn errors(calls: &CallsRead) -> Vec<(&'static str, u64)> {
    let fine = |outcome: &str| ["1xx", "2xx", "3xx", "4xx"].contains(&outcome);
    let errors = calls.outcomes.iter().filter(|(outcome, _)| !fine(outcome));
    errors.map(|(outcome, n)| (*outcome, *n)).collect()
}

fn targets(calls: Vec<(String, CallsRead)>, before: &BTreeMap<String, Sums>, over: Duration) -> Vec<Target> {
    let targets = calls.into_iter().map(|(name, calls)| {
        let now = Sums::of(&calls);
        let then = before.get(&name).copied().unwrap_or_default();
        // One that was forgotten meanwhile begins at 0 again.
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / over.as_secs_f64().max(1.0);
        Target {
            name,
            requests: now.requests,
            errors: now.errors,
            request_rate: rate(now.requests, then.requests),
            error_rate: rate(now.errors, then.errors),
            failed: errors(&calls),
            sent: calls.sent,
            received: calls.received,
        }
    });
    let mut targets: Vec<_> = targets.filter(|target| target.requests > 0).collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.requests));
    targets
}

fn callers(tallies: &Tallies) -> Vec<Callers> {
    let mut all: BTreeMap<String, Callers> = BTreeMap::new();
    for ((backend, outcome), count) in tallies.decisions() {
        let callers = all.entry(backend.clone()).or_default();
        callers.backend = backend;
        match outcome {
            "allowed" => callers.allowed += count,
            why => callers.refused.push((why, count)),
        }
    }
    let mut all: Vec<_> = all.into_values().collect();
    all.retain(|callers| callers.allowed > 0 || !callers.refused.is_empty());
    all
}

fn sessions(tallies: &Tallies) -> Vec<Sessions> {
    let all = tallies.sessions().into_iter();
    let all = all.map(|((kind, name), read)| Sessions {
        kind,
        name,
        open: read.open,
        ended: read.ended.into_iter().collect(),
        received: read.received,
        sent: read.sent,
    });
    all.collect()
}
