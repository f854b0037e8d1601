//! Which address of a backend a request goes to: the one with the fewest requests, of those that did not just fail.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::mesh::hop::Failure;
use crate::names::HostPort;
use crate::spec::Upstream;

/// How long an address that failed is left alone while there is another one.
const REST: Duration = Duration::from_secs(10);

/// What one worker knows of the addresses of all backends.
#[derive(Default)]
pub(super) struct Balance {
    failed: RefCell<HashMap<HostPort, Instant>>,
    turn: Cell<usize>,
}

impl Balance {
    /// The addresses for one request, best first: that one, and the others. `busy`: how many requests an address has.
    pub(super) fn tour<'b, 'u>(
        &'b self,
        upstream: &'u Upstream,
        busy: impl Fn(&HostPort) -> usize,
    ) -> (&'u HostPort, Tour<'b, 'u>) {
        let mut tour = Tour {
            balance: self,
            upstream,
            tried: Vec::new(),
        };
        let best = tour.next(busy).unwrap_or(upstream.first());
        (best, tour)
    }

    /// Nothing comes of asking this one for now.
    pub(super) fn failed(&self, at: &HostPort, why: &Failure) {
        let begun = self.failed.borrow_mut().insert(at.clone(), Instant::now());
        if begun.is_none() {
            tracing::warn!(upstream = %at, "an upstream does not answer: {why}");
        }
    }

    /// What failed long ago may be asked again.
    pub(super) fn forget(&self) {
        self.failed.borrow_mut().retain(|_, since| since.elapsed() < REST);
    }

    fn rests(&self, at: &HostPort) -> bool {
        let failed = self.failed.borrow();
        !failed.is_empty() && failed.get(at).is_some_and(|since| since.elapsed() < REST)
    }
}

/// The addresses that one request was not sent to yet.
pub(super) struct Tour<'b, 'u> {
    balance: &'b Balance,
    upstream: &'u Upstream,
    tried: Vec<usize>,
}

impl<'u> Tour<'_, 'u> {
    pub(super) fn has_more(&self) -> bool {
        self.tried.len() < self.upstream.len()
    }

    /// The next to ask. Those that failed come last: they are better than nobody.
    pub(super) fn next(&mut self, busy: impl Fn(&HostPort) -> usize) -> Option<&'u HostPort> {
        if let ([only], []) = (&self.upstream[..], &self.tried[..]) {
            self.tried.push(0);
            return Some(only);
        }
        // Among equals they take turns.
        let turn = self.balance.turn.get();
        self.balance.turn.set(turn.wrapping_add(1));
        let count = self.upstream.len();
        let best = (0..count)
            .map(|offset| (turn.wrapping_add(offset)) % count)
            .filter(|at| !self.tried.contains(at))
            .min_by_key(|at| {
                let at = &self.upstream[*at];
                (self.balance.rests(at), busy(at))
            })?;
        self.tried.push(best);
        Some(&self.upstream[best])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u16) -> Upstream {
        let addresses = (1..=count).map(|port| format!("127.0.0.1:{port}").parse().unwrap());
        Upstream::new(addresses.collect()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_busy_is_first_and_what_failed_is_last() {
        let (balance, upstream) = (Balance::default(), addresses(3));
        let busy = |at: &HostPort| usize::from(3 - at.port);
        let order = || {
            let (first, mut tour) = balance.tour(&upstream, busy);
            let others = std::iter::from_fn(|| tour.next(busy).map(|at| at.port));
            [first.port].into_iter().chain(others).collect::<Vec<_>>()
        };
        assert_eq!(order(), [3, 2, 1]);
        balance.failed(&upstream[2], &Failure::Internal);
        assert_eq!(order(), [2, 1, 3]);
        tokio::time::advance(REST).await;
        balance.forget();
        assert_eq!(order(), [3, 2, 1]);
    }

    #[test]
    fn equals_take_turns() {
        let (balance, upstream) = (Balance::default(), addresses(3));
        let mut counts = [0; 3];
        for _ in 0..30 {
            let (at, _) = balance.tour(&upstream, |_| 0);
            counts[usize::from(at.port) - 1] += 1;
        }
        assert_eq!(counts, [10, 10, 10]);
    }
}
