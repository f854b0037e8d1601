//! What the data plane counts. Each worker writes its own numbers, without a lock and without looking anything up; they
//! are summed when somebody asks.

mod pen;
mod read;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;

pub(super) use self::pen::{Held, Meter, Pen};
pub(crate) use self::read::CallsRead;
use super::Role;
use crate::metrics::cells::{Count, Histogram, Named};
use crate::names::AppId;

/// Targets that have a name of their own. Whoever calls chooses the targets, so there may be any number of them: beyond
/// this, those that nobody calls any more lose theirs, and if there are none, the new ones are `other`.
const MAX_TARGETS: usize = 256;

/// Where a connection leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Peer,
    Agent,
    /// Behind the built-in front.
    Backend,
}

impl To {
    pub(crate) const ALL: [Self; 3] = [Self::Peer, Self::Agent, Self::Backend];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Agent => "agent",
            Self::Backend => "backend",
        }
    }
}

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Tallies {
    workers: Box<[Arc<Worker>]>,
    targets: Mutex<BTreeMap<AppId, Arc<Calls>>>,
    other: Arc<Calls>,
    agent: Arc<Calls>,
    backends: Arc<Calls>,
    here: Arc<Calls>,
}

/// The numbers of one worker that belong to no target.
#[derive(Debug, Default)]
struct Worker {
    latency: [Histogram; To::ALL.len()],
    handshakes: Named,
    handshake_time: Histogram,
    open: [Count; To::ALL.len()],
    idle: [Count; To::ALL.len()],
    targets: [Count; To::ALL.len()],
    /// Connections of clients, by role of the listener.
    clients: [Count; Role::KEYS.len()],
    decisions: Mutex<BTreeMap<Box<str>, Arc<Decisions>>>,
    sessions: Mutex<BTreeMap<Role, Arc<Sessions>>>,
}

/// Requests to one target, counted by each worker for itself.
#[derive(Debug)]
struct Calls(Box<[Cells]>);

/// Two lines of the cache, so that no worker waits for what another one writes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cells {
    /// By the first digit of the status.
    answered: [Count; 6],
    failed: Named,
    sent: Count,
    received: Count,
}

/// What the auth service decided about one backend.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    pub(super) allowed: Count,
    pub(super) denied: Named,
}

/// TCP that one worker passes on for one backend or forward.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) open: Count,
    /// By how they ended, or why there was none.
    pub(super) ended: Named,
    /// In bytes: from whoever connected, and to it.
    pub(super) received: Count,
    pub(super) sent: Count,
}

impl Tallies {
    pub(super) fn new(workers: usize) -> Self {
        let calls = || Arc::new(Calls::new(workers));
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            targets: Mutex::default(),
            other: calls(),
            agent: calls(),
            backends: calls(),
            here: calls(),
        }
    }

    fn target(&self, app: AppId) -> Arc<Calls> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = targets.get(&app) {
            return Arc::clone(calls);
        }
        if targets.len() >= MAX_TARGETS {
            targets.retain(|_, calls| Arc::strong_count(calls) > 1);
        }
        if targets.len() >= MAX_TARGETS {
            return Arc::clone(&self.other);
        }
        let calls = Arc::new(Calls::new(self.workers.len()));
        targets.insert(app, Arc::clone(&calls));
        calls
    }
}

impl Calls {
    fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Cells::default()).collect())
    }
}

/// By the first digit of the status. Nobody sends less than 100, and what is above 599 is no HTTP.
const CLASSES: [&str; 6] = ["odd", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// How a status counts.
pub(super) fn class(status: StatusCode) -> &'static str {
    CLASSES[class_of(status)]
}

fn class_of(status: StatusCode) -> usize {
    match usize::from(status.as_u16() / 100) {
        class @ 1..=5 => class,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn app(number: usize) -> AppId {
        format!("{number:040x}").parse().unwrap()
    }

    fn names(tallies: &Tallies) -> Vec<String> {
        tallies.calls().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn ever_new_targets_take_the_places_of_those_that_nobody_calls() {
        let tallies = Arc::new(Tallies::new(2));
        let pen = Pen::new(&tallies, 1);
        let kept = pen.target(app(0));
        kept.waiting().failed("dns");
        for number in 1..10 * MAX_TARGETS {
            pen.target(app(number)).waiting().failed("dns");
        }
        assert!(tallies.calls().len() <= MAX_TARGETS + 4);
        assert!(names(&tallies).contains(&app(10 * MAX_TARGETS - 1).to_string()));
        assert_eq!(names(&tallies)[0], app(0).to_string());
        kept.waiting().answered(StatusCode::OK, Duration::ZERO);
        let outcomes = tallies.calls().remove(0).1.outcomes;
        assert_eq!(outcomes, BTreeMap::from([("2xx", 1), ("dns", 1)]));
    }

    #[test]
    fn targets_that_find_no_place_share_one() {
        let tallies = Arc::new(Tallies::new(2));
        let pens = [Pen::new(&tallies, 0), Pen::new(&tallies, 1)];
        let meters: Vec<_> = (0..MAX_TARGETS + 5).map(|n| pens[n % 2].target(app(n))).collect();
        for meter in &meters {
            meter.waiting().failed("dns");
            meter.sent(10);
        }
        assert_eq!(tallies.calls().len(), MAX_TARGETS + 4);
        let (name, other) = tallies.calls().pop().unwrap();
        assert_eq!(name, "other");
        assert_eq!((other.outcomes["dns"], other.sent), (5, 50));
        drop(meters);
        let late = pens[0].target(app(9999));
        late.waiting().failed("dns");
        assert!(names(&tallies).contains(&app(9999).to_string()));
    }

    #[test]
    fn a_handshake_that_nobody_waits_for_is_counted() {
        let tallies = Arc::new(Tallies::new(1));
        let meter = Pen::new(&tallies, 0).target(app(1));
        drop(meter.handshake());
        meter.handshake().ended("full");
        meter.handshake().ended("dns");
        let expected = BTreeMap::from([("client_gone", 1), ("dns", 1), ("full", 1)]);
        assert_eq!(tallies.handshakes(), expected);
        assert_eq!(tallies.handshake_time().count(), 3);
        let open = meter.open();
        assert_eq!(tallies.connections(To::Peer), (1, 0));
        drop(open);
        assert_eq!(tallies.connections(To::Peer), (0, 0));
    }
}
