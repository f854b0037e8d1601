//! Keeps the public map of relays: fetched once a day, kept in `<state>/run/derp_map.json`.
//!
//! Headscale could fetch it by itself, but from 0.27 on it does not start when that fails.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use url::Url;

use super::derp_map::DerpMap;
use super::remember::{REMEMBERED, replace_file};
use super::watch::{Keeper, changed};
use super::{Fact, Observed, Topic};
use crate::http::{self, Trust};
use crate::paths::StateDir;
use crate::spec::{Derp, Spec};

/// How long a map stands: when it changes, Headscale restarts.
const REFRESH: Duration = Duration::from_secs(24 * 3600);

/// The waits after one failure, and after many: machines without a way to the internet never get one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// From name to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The public map has about 40 KB.
const MAX_ANSWER: usize = 1 << 20;

const FILE: &str = "derp_map.json";

/// Why there is no map, or no newer one.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{url}: no answer within {}s", TIMEOUT.as_secs())]
    Timeout { url: Url },
    #[error("{url}: {why}")]
    Unreachable { url: Url, why: String },
    #[error("{url} answered with status {status}")]
    Status { url: Url, status: StatusCode },
    #[error("{url}: the answer is no map of relays: {why}")]
    Malformed { url: Url, why: String },
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    url: String,
    /// Seconds since 1970.
    at: u64,
    /// As it was fetched.
    map: Box<RawValue>,
}

impl Keeper {
    pub(super) async fn keep_derp_map(&self) {
        let mut rescan = self.rescan.subscribe();
        let mut failures = 0;
        loop {
            let spec = self.spec();
            let wait = match wanted(&spec) {
                None => {
                    self.publish(|observed| observed.set_problem(Topic::Relays, None, None));
                    LONGEST
                }
                Some(url) => match self.time_left(url) {
                    Some(left) => left.min(LONGEST),
                    None => {
                        let Some(fetched) = self.unless_cancelled(fetch(url)).await else {
                            return;
                        };
                        let wait = match &fetched {
                            Ok(_) => LONGEST,
                            Err(_) => FIRST.saturating_mul(1 << failures.min(12)).min(LONGEST),
                        };
                        failures = if fetched.is_ok() { 0 } else { failures + 1 };
                        self.take_map(&spec, url, fetched, wait);
                        wait
                    }
                },
            };
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait.mul_f64(0.75 + 0.25 * fastrand::f64())) => {}
                () = changed(&mut rescan) => {}
                () = self.other_spec(|now| wanted(now) != wanted(&spec)) => failures = 0,
            }
        }
    }

    /// Until the map is too old; `None`: it is, or there is none from `url`.
    fn time_left(&self, url: &Url) -> Option<Duration> {
        let observed = self.observed.borrow();
        let map = observed.facts.derp_map.as_ref()?;
        let is_from_there = map.source.trim_start_matches(REMEMBERED) == url.as_str();
        // A clock that was set back makes it no older.
        let age = SystemTime::now().duration_since(map.at).unwrap_or_default();
        REFRESH.checked_sub(age).filter(|_| is_from_there)
    }

    fn take_map(
        &self,
        spec: &Spec,
        url: &Url,
        fetched: Result<(DerpMap, Bytes), FetchError>,
        wait: Duration,
    ) {
        match fetched {
            Ok((map, json)) => {
                if let Err(e) = remember(&self.state, url, &json) {
                    tracing::warn!(error = %e, "cannot remember the relays in {}", self.state.run().display());
                }
                self.publish(|observed| {
                    observed.facts.derp_map = Some(Fact::now(Arc::new(map), url.as_str()));
                    observed.set_problem(Topic::Relays, None, None);
                });
            }
            // With relays of our own, or those of yesterday, nothing is amiss.
            Err(e) if spec.vpn.derp == Derp::Auto || self.observed.borrow().facts.derp_map.is_some() => {
                tracing::info!("the public relays stay as they are for now: {e}");
                self.publish(|observed| observed.set_problem(Topic::Relays, None, None));
            }
            Err(e) => {
                let message =
                    format!("{e}. Headscale waits for it; vpn.derp = \"embedded\" needs no relays of others");
                self.publish(|observed| observed.set_problem(Topic::Relays, Some(message), Some(wait)));
            }
        }
    }
}

impl Observed {
    /// Puts in the map that was fetched in an earlier life. A file that is missing or damaged is no memory.
    pub(super) fn recall_derp_map(&mut self, state: &StateDir) {
        self.facts.derp_map = recall(state);
    }
}

/// Where the map is to be had, when somebody needs it.
fn wanted(spec: &Spec) -> Option<&Url> {
    let is_wanted = spec.role.server && matches!(spec.vpn.derp, Derp::Auto | Derp::Public);
    is_wanted.then_some(&spec.vpn.derp_map_url)
}

fn recall(state: &StateDir) -> Option<Fact<Arc<DerpMap>>> {
    let json = std::fs::read(state.run().join(FILE)).ok()?;
    let memory: Remembered = serde_json::from_slice(&json).ok()?;
    Some(Fact {
        value: Arc::new(DerpMap::parse(memory.map.get().as_bytes()).ok()?),
        source: format!("{REMEMBERED}{}", memory.url),
        at: UNIX_EPOCH.checked_add(Duration::from_secs(memory.at))?,
    })
}

fn remember(state: &StateDir, url: &Url, json: &[u8]) -> std::io::Result<()> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let memory = Remembered {
        url: url.to_string(),
        at: at.as_secs(),
        map: serde_json::from_slice(json)?,
    };
    replace_file(&state.run(), FILE, &serde_json::to_vec(&memory)?)
}

/// The map, and the JSON it was made from.
async fn fetch(url: &Url) -> Result<(DerpMap, Bytes), FetchError> {
    let asked = tokio::time::timeout(TIMEOUT, get(url)).await;
    let json = asked.unwrap_or_else(|_| Err(FetchError::Timeout { url: url.clone() }))?;
    match DerpMap::parse(&json) {
        Ok(map) => Ok((map, json)),
        Err(why) => Err(FetchError::Malformed {
            url: url.clone(),
            why,
        }),
    }
}

async fn get(url: &Url) -> Result<Bytes, FetchError> {
    match http::get(url, Trust::System, MAX_ANSWER).await {
        Ok((StatusCode::OK, body, _)) => Ok(body),
        Ok((status, ..)) => Err(FetchError::Status {
            url: url.clone(),
            status,
        }),
        Err(why) => Err(FetchError::Unreachable {
            url: url.clone(),
            why: why.to_string(),
        }),
    }
}
