//! What the data plane counts. Each worker writes its own numbers, without a lock and without looking anything up; they
//! are summed when somebody asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::Role;
use crate::codes::Code;
use crate::metrics::cells::{Count, Histogram, Named, Times};
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

/// The same, of all workers.
#[derive(Debug, Default)]
pub(crate) struct SessionsRead {
    pub(crate) open: u64,
    pub(crate) ended: BTreeMap<&'static str, u64>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
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

    /// Requests, by target.
    pub(crate) fn calls(&self) -> Vec<(String, CallsRead)> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let named = targets.iter().map(|(app, calls)| (app.to_string(), calls.read()));
        let fixed = [
            ("agent", &self.agent),
            ("backend", &self.backends),
            ("self", &self.here),
            ("other", &self.other),
        ];
        let fixed = fixed.map(|(name, calls)| (name.to_owned(), calls.read()));
        named.chain(fixed).collect()
    }

    /// Times to the head of a response.
    pub(crate) fn latency(&self, to: To) -> Times {
        self.times(|worker| &worker.latency[to as usize])
    }

    pub(crate) fn handshake_time(&self) -> Times {
        self.times(|worker| &worker.handshake_time)
    }

    fn times(&self, of: impl Fn(&Worker) -> &Histogram) -> Times {
        let mut sum = Times::default();
        for worker in &self.workers {
            sum += of(worker).read();
        }
        sum
    }

    /// Handshakes with peers, by how they ended.
    pub(crate) fn handshakes(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for (name, count) in self.workers.iter().flat_map(|worker| worker.handshakes.read()) {
            *sum.entry(name).or_default() += count;
        }
        sum
    }

    /// Open connections: those in use, and those that wait for their next request.
    pub(crate) fn connections(&self, to: To) -> (u64, u64) {
        let (open, idle) = (
            self.sum(|worker| &worker.open[to as usize]),
            self.sum(|worker| &worker.idle[to as usize]),
        );
        // The two are not read in one moment.
        (open.saturating_sub(idle), idle)
    }

    /// Targets that the pools know; one that several workers call is counted by each.
    pub(crate) fn pooled_targets(&self) -> u64 {
        self.sum(|worker| &worker.targets[To::Peer as usize])
    }

    /// Connections of clients, by the key of the listener.
    pub(crate) fn clients(&self) -> [(&'static str, u64); Role::KEYS.len()] {
        std::array::from_fn(|kind| (Role::KEYS[kind], self.sum(|worker| &worker.clients[kind])))
    }

    fn sum(&self, of: impl Fn(&Worker) -> &Count) -> u64 {
        self.workers.iter().map(|worker| of(worker).get()).sum()
    }

    /// What the auth service decided: backend, outcome, how often.
    pub(crate) fn decisions(&self) -> BTreeMap<(String, &'static str), u64> {
        let mut sum = BTreeMap::new();
        for worker in &self.workers {
            let decisions = worker.decisions.lock().unwrap_or_else(PoisonError::into_inner);
            for (backend, decisions) in &*decisions {
                let allowed = ("allowed", decisions.allowed.get());
                for (outcome, count) in decisions.denied.read().into_iter().chain([allowed]) {
                    *sum.entry((backend.to_string(), outcome)).or_default() += count;
                }
            }
        }
        sum
    }
}

impl Tallies {
    /// What TCP was passed on: for `backend` or `forward`, and which.
    pub(crate) fn sessions(&self) -> BTreeMap<(&'static str, String), SessionsRead> {
        let mut all = BTreeMap::<_, SessionsRead>::new();
        for worker in &self.workers {
            let sessions = worker.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            for (role, sessions) in &*sessions {
                let kind = match role {
                    Role::Forward(_) => "forward",
                    _ => "backend",
                };
                let name = role.name().unwrap_or_default().to_owned();
                let sum = all.entry((kind, name)).or_default();
                sum.open += sessions.open.get();
                sum.received += sessions.received.get();
                sum.sent += sessions.sent.get();
                for (outcome, count) in sessions.ended.read() {
                    *sum.ended.entry(outcome).or_default() += count;
                }
            }
        }
        all
    }
}

/// What became of the requests to one target.
#[derive(Debug, Default)]
pub(crate) struct CallsRead {
    /// `2xx` and the like, or the code of a failure.
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    /// In bytes.
    pub(crate) sent: u64,
    /// In bytes.
    pub(crate) received: u64,
}

impl Calls {
    fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Cells::default()).collect())
    }

    fn read(&self) -> CallsRead {
        let mut sum = CallsRead::default();
        for cells in &self.0 {
            sum.sent += cells.sent.get();
            sum.received += cells.received.get();
            let answered = CLASSES.into_iter().zip(cells.answered.iter().map(Count::get));
            for (outcome, count) in answered
                .chain(cells.failed.read())
                .filter(|(_, count)| *count > 0)
            {
                *sum.outcomes.entry(outcome).or_default() += count;
            }
        }
        sum
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

/// One worker's way to its numbers.
#[derive(Debug, Clone)]
pub(super) struct Pen {
    all: Arc<Tallies>,
    worker: Arc<Worker>,
    number: usize,
}

impl Pen {
    pub(super) fn new(all: &Arc<Tallies>, number: usize) -> Self {
        Self {
            all: Arc::clone(all),
            worker: Arc::clone(&all.workers[number]),
            number,
        }
    }

    /// For calls to an app.
    pub(super) fn target(&self, app: AppId) -> Meter {
        self.meter(self.all.target(app), Some(To::Peer))
    }

    /// For calls to the guest agent.
    pub(super) fn agent(&self) -> Meter {
        self.meter(Arc::clone(&self.all.agent), Some(To::Agent))
    }

    /// For requests to backends of this machine.
    pub(super) fn backends(&self) -> Meter {
        self.meter(Arc::clone(&self.all.backends), Some(To::Backend))
    }

    /// For what is answered here.
    pub(super) fn here(&self) -> Meter {
        self.meter(Arc::clone(&self.all.here), None)
    }

    fn meter(&self, calls: Arc<Calls>, to: Option<To>) -> Meter {
        Meter {
            worker: Arc::clone(&self.worker),
            number: self.number,
            calls,
            to,
        }
    }

    /// A connection begins or ceases to wait in a pool.
    pub(super) fn idle(&self, to: To) -> &Count {
        &self.worker.idle[to as usize]
    }

    /// Connections of clients.
    pub(super) fn clients(&self, role: &Role) -> &Count {
        &self.worker.clients[role.kind()]
    }

    /// For sessions of a TCP backend or a forward; to be kept.
    pub(super) fn sessions(&self, of: &Role) -> Arc<Sessions> {
        let mut all = self
            .worker
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(of.clone()).or_default())
    }

    /// For decisions about a backend; to be kept.
    pub(super) fn decisions(&self, backend: &str) -> Arc<Decisions> {
        let mut all = self
            .worker
            .decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(backend.into()).or_default())
    }
}

/// Counts the calls of one worker to one target.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    worker: Arc<Worker>,
    number: usize,
    calls: Arc<Calls>,
    to: Option<To>,
}

impl Meter {
    fn cells(&self) -> &Cells {
        &self.calls.0[self.number]
    }

    /// A request waits for its answer.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        Waiting(Some(self))
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.cells().sent.add(bytes as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.cells().received.add(bytes as u64);
    }

    /// Counts an open connection for as long as the guard lives.
    pub(super) fn open(&self) -> Held {
        self.hold(|worker| &worker.open)
    }

    /// Counts a target in a pool for as long as the guard lives.
    pub(super) fn pooled(&self) -> Held {
        self.hold(|worker| &worker.targets)
    }

    fn hold(&self, of: fn(&Worker) -> &[Count; To::ALL.len()]) -> Held {
        let (worker, to) = (Arc::clone(&self.worker), self.to.unwrap_or(To::Peer));
        of(&worker)[to as usize].add(1);
        Held { worker, of, to }
    }

    /// A connection to a peer is being made.
    pub(super) fn handshake(&self) -> Handshake<'_> {
        Handshake {
            worker: &self.worker,
            began: Instant::now(),
            outcome: Code::ClientGone.name(),
        }
    }
}

/// A request that is counted when it is answered, or when nobody waits for it any more.
pub(super) struct Waiting<'m>(Option<&'m Meter>);

impl Waiting<'_> {
    /// The head of a response came.
    pub(super) fn answered(mut self, status: StatusCode, took: Duration) {
        if let Some(meter) = self.0.take() {
            meter.cells().answered[class_of(status)].add(1);
            if let Some(to) = meter.to {
                meter.worker.latency[to as usize].observe(took);
            }
        }
    }

    /// None came.
    pub(super) fn failed(mut self, code: &'static str) {
        if let Some(meter) = self.0.take() {
            meter.cells().failed.add(code);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(meter) = self.0 {
            meter.cells().failed.add(Code::ClientGone.name());
        }
    }
}

/// Something that is counted while it is there.
pub(super) struct Held {
    worker: Arc<Worker>,
    of: fn(&Worker) -> &[Count; To::ALL.len()],
    to: To,
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.of)(&self.worker)[self.to as usize].sub(1);
    }
}

/// A handshake that is counted when it ends, or when nobody waits for it any more.
pub(super) struct Handshake<'m> {
    worker: &'m Worker,
    began: Instant,
    outcome: &'static str,
}

impl Handshake<'_> {
    pub(super) fn ended(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.worker.handshakes.add(self.outcome);
        self.worker.handshake_time.observe(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
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
