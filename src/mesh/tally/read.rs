//! Reading: the numbers of all workers, summed.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::{CLASSES, Calls, Tallies, To, Worker};
use crate::mesh::Role;
use crate::metrics::cells::{Count, Histogram, Times};

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

/// TCP that was passed on for one backend or forward: [`super::Sessions`] of all workers.
#[derive(Debug, Default)]
pub(crate) struct SessionsRead {
    pub(crate) open: u64,
    pub(crate) ended: BTreeMap<&'static str, u64>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Tallies {
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

impl Calls {
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
