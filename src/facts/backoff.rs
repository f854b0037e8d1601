//! When to try again.

use std::time::Duration;

/// How long a good answer stands before it is asked for again.
const REFRESH: Duration = Duration::from_secs(60);

/// How long to wait after an attempt: first short, then longer, never in step with other machines.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The wait after an attempt that succeeded or failed.
    pub(crate) fn after(&mut self, success: bool) -> Duration {
        let wait = if success {
            self.failures = 0;
            REFRESH
        } else {
            self.failures = self.failures.saturating_add(1);
            let doubled = Self::FIRST.saturating_mul(1 << (self.failures - 1).min(16));
            doubled.min(Self::LONGEST)
        };
        wait.mul_f64(0.75 + 0.25 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..60).map(|_| backoff.after(false)).collect();
        assert!(waits[0] <= Duration::from_millis(200) && waits[0] >= Duration::from_millis(150));
        assert!(waits[59] <= Duration::from_secs(30) && waits[59] >= Duration::from_secs(22));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
        assert!(backoff.after(true) > Duration::from_secs(40));
        assert!(backoff.after(false) <= Duration::from_millis(200));
    }
}
