//! Writing: one worker's way to its numbers, and guards that count what ends by itself.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::{Calls, Cells, Decisions, Sessions, Tallies, To, Worker, class_of};
use crate::codes::Code;
use crate::mesh::Role;
use crate::metrics::cells::Count;
use crate::names::AppId;

/// One worker's way to its numbers.
#[derive(Debug, Clone)]
pub(in crate::mesh) struct Pen {
    all: Arc<Tallies>,
    worker: Arc<Worker>,
    number: usize,
}

impl Pen {
    pub(in crate::mesh) fn new(all: &Arc<Tallies>, number: usize) -> Self {
        Self {
            all: Arc::clone(all),
            worker: Arc::clone(&all.workers[number]),
            number,
        }
    }

    /// For calls to an app.
    pub(in crate::mesh) fn target(&self, app: AppId) -> Meter {
        self.meter(self.all.target(app), Some(To::Peer))
    }

    /// For calls to the guest agent.
    pub(in crate::mesh) fn agent(&self) -> Meter {
        self.meter(Arc::clone(&self.all.agent), Some(To::Agent))
    }

    /// For requests to backends of this machine.
    pub(in crate::mesh) fn backends(&self) -> Meter {
        self.meter(Arc::clone(&self.all.backends), Some(To::Backend))
    }

    /// For what is answered here.
    pub(in crate::mesh) fn here(&self) -> Meter {
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
    pub(in crate::mesh) fn idle(&self, to: To) -> &Count {
        &self.worker.idle[to as usize]
    }

    /// Connections of clients.
    pub(in crate::mesh) fn clients(&self, role: &Role) -> &Count {
        &self.worker.clients[role.kind()]
    }

    /// For sessions of a TCP backend or a forward; to be kept.
    pub(in crate::mesh) fn sessions(&self, of: &Role) -> Arc<Sessions> {
        let mut all = self
            .worker
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(of.clone()).or_default())
    }

    /// For decisions about a backend; to be kept.
    pub(in crate::mesh) fn decisions(&self, backend: &str) -> Arc<Decisions> {
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
pub(in crate::mesh) struct Meter {
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
    pub(in crate::mesh) fn waiting(&self) -> Waiting<'_> {
        Waiting(Some(self))
    }

    pub(in crate::mesh) fn sent(&self, bytes: usize) {
        self.cells().sent.add(bytes as u64);
    }

    pub(in crate::mesh) fn received(&self, bytes: usize) {
        self.cells().received.add(bytes as u64);
    }

    /// Counts an open connection for as long as the guard lives.
    pub(in crate::mesh) fn open(&self) -> Held {
        self.hold(|worker| &worker.open)
    }

    /// Counts a target in a pool for as long as the guard lives.
    pub(in crate::mesh) fn pooled(&self) -> Held {
        self.hold(|worker| &worker.targets)
    }

    fn hold(&self, of: fn(&Worker) -> &[Count; To::ALL.len()]) -> Held {
        let (worker, to) = (Arc::clone(&self.worker), self.to.unwrap_or(To::Peer));
        of(&worker)[to as usize].add(1);
        Held { worker, of, to }
    }

    /// A connection to a peer is being made.
    pub(in crate::mesh) fn handshake(&self) -> Handshake<'_> {
        Handshake {
            worker: &self.worker,
            began: Instant::now(),
            outcome: Code::ClientGone.name(),
        }
    }
}

/// A request that is counted when it is answered, or when nobody waits for it any more.
pub(in crate::mesh) struct Waiting<'m>(Option<&'m Meter>);

impl Waiting<'_> {
    /// The head of a response came.
    pub(in crate::mesh) fn answered(mut self, status: StatusCode, took: Duration) {
        if let Some(meter) = self.0.take() {
            meter.cells().answered[class_of(status)].add(1);
            if let Some(to) = meter.to {
                meter.worker.latency[to as usize].observe(took);
            }
        }
    }

    /// None came.
    pub(in crate::mesh) fn failed(mut self, code: &'static str) {
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
pub(in crate::mesh) struct Held {
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
pub(in crate::mesh) struct Handshake<'m> {
    worker: &'m Worker,
    began: Instant,
    outcome: &'static str,
}

impl Handshake<'_> {
    pub(in crate::mesh) fn ended(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.worker.handshakes.add(self.outcome);
        self.worker.handshake_time.observe(self.began.elapsed());
    }
}
