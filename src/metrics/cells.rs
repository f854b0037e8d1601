//! Numbers that one thread counts and any other reads.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A number with one writer, which therefore needs no locked instruction. Readers see it a moment late, never torn.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, less: u64) {
        self.0.store(self.get().wrapping_sub(less), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets, in microseconds: a call within one machine takes a quarter of a millisecond, and no
/// time limit is usually above a minute.
const BOUNDS: [u32; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
const BUCKETS: usize = BOUNDS.len() + 1;

/// How long things took. One writer, as [`Count`].
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Count; BUCKETS],
    nanos: Count,
}

impl Histogram {
    pub(crate) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = BOUNDS.iter().position(|bound| nanos <= u64::from(*bound) * 1000);
        self.buckets[at.unwrap_or(BOUNDS.len())].add(1);
        self.nanos.add(nanos);
    }

    pub(crate) fn read(&self) -> Times {
        Times {
            buckets: std::array::from_fn(|at| self.buckets[at].get()),
            nanos: self.nanos.get(),
        }
    }
}

/// A histogram at one moment, or the sum of some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Each for itself, not cumulative.
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl Times {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// In seconds.
    pub(crate) fn sum(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }

    /// Upper bounds in seconds, each with its own count.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().map(|micros| f64::from(*micros) / 1e6);
        bounds.chain([f64::INFINITY]).zip(self.buckets).collect()
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += more;
        }
        self.nanos += other.nanos;
    }
}

/// Counts by name, for what is rare and may have a name that is not known beforehand. The names are those of the
/// program, so they are few.
#[derive(Debug, Default)]
pub(crate) struct Named(Mutex<BTreeMap<&'static str, u64>>);

impl Named {
    pub(crate) fn add(&self, name: &'static str) {
        *self.lock().entry(name).or_default() += 1;
    }

    pub(crate) fn read(&self) -> BTreeMap<&'static str, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_falls_into_the_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [1, 250, 251, 60_000_000, 60_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut times = histogram.read();
        times += histogram.read();
        let filled: Vec<_> = times.buckets().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(0.00025, 4), (0.0005, 2), (60.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(times.count(), 10);
        assert!((times.sum() - 240.001_006).abs() < 1e-9, "{}", times.sum());
    }
}
