//! How much one app may ask for in an hour.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::ApiSettings;
use super::error::ApiError;
use crate::names::AppId;

/// Fewer apps than this are never worth a cleaning.
const FEW: usize = 1024;

/// The limits of every app.
pub(super) struct Limits {
    requests: Option<Limit>,
    registrations: Option<Limit>,
}

impl Limits {
    pub(super) fn new(settings: &ApiSettings) -> Self {
        Self {
            requests: Limit::new("this app sent too many requests", settings.requests_per_hour),
            registrations: Limit::new(
                "this app registered too many nodes",
                settings.registrations_per_hour,
            ),
        }
    }

    /// Any request.
    pub(super) fn request(&self, app: AppId) -> Result<(), ApiError> {
        self.requests.as_ref().map_or(Ok(()), |limit| limit.take(app))
    }

    /// A registration, on top of being a request.
    pub(super) fn registration(&self, app: AppId) -> Result<(), ApiError> {
        self.registrations
            .as_ref()
            .map_or(Ok(()), |limit| limit.take(app))
    }
}

struct Limit {
    what: &'static str,
    most: NonZeroU32,
    apps: DefaultKeyedRateLimiter<AppId>,
    /// How many apps are remembered at most before those that have nothing outstanding are forgotten.
    clean_at: AtomicUsize,
}

impl Limit {
    /// `None` for 0, which is any number.
    fn new(what: &'static str, most: u32) -> Option<Self> {
        let most = NonZeroU32::new(most)?;
        Some(Self {
            what,
            most,
            apps: RateLimiter::keyed(Quota::per_hour(most)),
            clean_at: AtomicUsize::new(FEW),
        })
    }

    fn take(&self, app: AppId) -> Result<(), ApiError> {
        if self.apps.len() >= self.clean_at.load(Ordering::Relaxed) {
            self.apps.retain_recent();
            self.apps.shrink_to_fit();
            // Twice what is left, so that cleaning costs each request next to nothing.
            let next = (2 * self.apps.len()).max(FEW);
            self.clean_at.store(next, Ordering::Relaxed);
        }
        self.apps.check_key(&app).map_err(|not_yet| {
            let wait = not_yet.wait_time_from(DefaultClock::default().now());
            ApiError::TooMany {
                what: self.what,
                most: self.most.get(),
                retry: Duration::from_secs(wait.as_secs_f64().ceil().max(1.0) as u64),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(n: u32) -> AppId {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        AppId::from_bytes(bytes)
    }

    #[test]
    fn each_app_has_its_own_share() {
        let limit = Limit::new("", 2).unwrap();
        assert!(limit.take(app(1)).is_ok() && limit.take(app(1)).is_ok());
        let Err(ApiError::TooMany { retry, .. }) = limit.take(app(1)) else {
            panic!("a third one");
        };
        assert!((1790..=1800).contains(&retry.as_secs()), "{retry:?}");
        assert!(limit.take(app(2)).is_ok());
        assert!(Limit::new("", 0).is_none());
    }

    #[test]
    fn a_crowd_of_apps_is_forgotten_again() {
        // One request is forgiven after a microsecond.
        let limit = Limit::new("", 3_600_000_000).unwrap();
        for n in 0..200_000 {
            limit.take(app(n)).unwrap();
        }
        assert!(limit.apps.len() <= 2 * FEW, "{}", limit.apps.len());
    }
}
