//! Remembering what failed, so that the same input is not tried in a tight loop.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::desired::Desired;

const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
/// Failures are few; this only keeps a storm of distinct ones from growing.
const KEPT: usize = 64;

/// Stands for one desired state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(desired: &Desired) -> Self {
        let mut hash = Sha256::new();
        for (path, file) in &desired.files {
            hash.update(path);
            hash.update(Sha256::digest(&file.bytes));
        }
        // The listeners follow from the effective settings, which are one of the files, and from the facts.
        hash.update(format!("{:?}{:?}", desired.facts, desired.programs));
        Self(hash.finalize().into())
    }
}

/// Failed attempts by what was attempted.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: BTreeMap<Fingerprint, Failed>,
}

#[derive(Debug)]
struct Failed {
    times: u32,
    retry: Instant,
}

impl Attempts {
    /// Nothing has failed: then nothing needs to be recognised.
    pub(super) fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    /// True when this has failed and its time has not come again.
    pub(super) fn too_soon(&self, what: &Fingerprint) -> bool {
        self.failed
            .get(what)
            .is_some_and(|failed| Instant::now() < failed.retry)
    }

    /// Remembers a failure; returns when to try again: twice as late each time, with jitter.
    pub(super) fn failed(&mut self, what: Fingerprint) -> Instant {
        if self.failed.len() >= KEPT {
            self.failed.pop_first();
        }
        let failed = self.failed.entry(what).or_insert(Failed {
            times: 0,
            retry: Instant::now(),
        });
        let wait = FIRST.saturating_mul(1 << failed.times.min(16)).min(LONGEST);
        failed.times += 1;
        failed.retry = Instant::now() + wait.mul_f64(0.75 + fastrand::f64() / 2.0);
        failed.retry
    }

    /// It works now.
    pub(super) fn worked(&mut self, what: &Fingerprint) {
        self.failed.remove(what);
    }

    /// Somebody asked to try everything again.
    pub(super) fn forget(&mut self) {
        self.failed.clear();
    }

    /// Only the present wish matters for retries: older wishes come back by themselves or never.
    pub(super) fn retry_at(&self, what: &Fingerprint) -> Option<Instant> {
        self.failed.get(what).map(|failed| failed.retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_input_waits_longer_each_time() {
        let mut attempts = Attempts::default();
        let what = Fingerprint([1; 32]);
        assert!(!attempts.too_soon(&what));
        let first = attempts.failed(what.clone()) - Instant::now();
        assert!(attempts.too_soon(&what));
        tokio::time::advance(first).await;
        assert!(!attempts.too_soon(&what));
        let mut last = first;
        for _ in 0..12 {
            last = attempts.failed(what.clone()) - Instant::now();
        }
        assert!(last > first && last <= LONGEST.mul_f64(1.25), "{last:?}");
        attempts.worked(&what);
        assert!(!attempts.too_soon(&what));
    }
}
