//! Whether something has stayed the same for long.

use std::time::Duration;

use tokio::time::sleep;

/// Waits until a value has been the same for so long, give or take a quarter.
pub(super) async fn unchanged(how_long: Duration, value: impl Fn() -> u64) {
    let mut unchanged = Unchanged::new(how_long);
    while !unchanged.for_long(part(how_long), Some(value())) {
        sleep(part(how_long)).await;
    }
}

/// How often to look for something that is to be the same for so long.
pub(super) fn part(of: Duration) -> Duration {
    (of / 4).max(Duration::from_millis(1))
}

/// A value that is looked at from time to time.
pub(super) struct Unchanged {
    how_long: Duration,
    seen: Option<u64>,
    already: Duration,
}

impl Unchanged {
    pub(super) fn new(how_long: Duration) -> Self {
        let (seen, already) = (None, Duration::ZERO);
        Self {
            how_long,
            seen,
            already,
        }
    }

    /// Whether it has been the same for so long, given the time that `passed` since the last look: not what the clock says,
    /// because who slept with the whole machine has not seen what came meanwhile. Without a value, time does not count.
    pub(super) fn for_long(&mut self, passed: Duration, value: Option<u64>) -> bool {
        self.already = match value.is_some() && value == self.seen {
            true => self.already + passed,
            false => Duration::ZERO,
        };
        self.seen = value;
        value.is_some() && self.already >= self.how_long
    }
}
