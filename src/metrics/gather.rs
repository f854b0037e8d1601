//! Everything there is to tell, from wherever it is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::catalog;
use super::cells::Histogram;
use super::page::{Page, Value};
use super::process::Process;
use crate::api::{ApiStatus, Directory, Requests};
use crate::facts::Observed;
use crate::log;
use crate::mesh::{Tallies, To};
use crate::node::Path;
use crate::reconcile::status::{Drift, Status};

/// What the daemon says of itself, as it is at any moment.
#[derive(Debug, Clone)]
pub struct Sources {
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) observed: watch::Receiver<Observed>,
    /// How long reconciles took.
    pub(crate) reconciles: Arc<Histogram>,
}

/// The VPC API, while it is open.
#[derive(Debug, Clone)]
pub(crate) struct ApiSide {
    pub(crate) requests: Arc<Requests>,
    pub(crate) status: watch::Receiver<ApiStatus>,
    pub(crate) directory: Directory,
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Gather {
    sources: Sources,
    pub(crate) mesh: Arc<Tallies>,
    api: Arc<Mutex<Option<ApiSide>>>,
}

impl Gather {
    pub(crate) fn new(sources: Sources, mesh: Arc<Tallies>) -> Self {
        let api = Arc::default();
        Self { sources, mesh, api }
    }

    /// The API was opened or closed.
    pub(crate) fn set_api(&self, api: Option<ApiSide>) {
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = api;
    }

    /// The API, while it is open.
    pub(crate) fn api(&self) -> Option<ApiSide> {
        self.api.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the daemon says of itself now.
    pub(crate) fn status(&self) -> Status {
        self.sources.status.borrow().clone()
    }
}

impl Collector for Gather {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        outbound(&mut page, &self.mesh)?;
        let status = self.status();
        inbound(&mut page, &self.mesh, &status, self.api())?;
        streams(&mut page, &self.mesh)?;
        reconcile(&mut page, &status, &self.sources)?;
        process(&mut page, &status)
    }
}

fn count(count: usize) -> Value {
    Value::Level(count as f64)
}

fn outbound(page: &mut Page<'_>, mesh: &Tallies) -> fmt::Result {
    let calls = mesh.calls();
    let outcomes = calls.iter().flat_map(|(target, calls)| {
        let outcomes = calls.outcomes.iter();
        outcomes.map(move |(outcome, count)| ([target.as_str(), outcome], Value::Count(*count)))
    });
    page.family(&catalog::REQUESTS, outcomes)?;
    let latency = To::ALL.map(|to| ([to.name()], Value::Times(mesh.latency(to))));
    page.family(&catalog::LATENCY, latency)?;
    // What is answered here goes nowhere.
    let far = || calls.iter().filter(|(target, _)| target != "self");
    let sent = far().map(|(target, calls)| ([target], Value::Count(calls.sent)));
    page.family(&catalog::SENT, sent)?;
    let received = far().map(|(target, calls)| ([target], Value::Count(calls.received)));
    page.family(&catalog::RECEIVED, received)?;
    let handshakes = mesh.handshakes().into_iter();
    let handshakes = handshakes.map(|(outcome, count)| ([outcome], Value::Count(count)));
    page.family(&catalog::HANDSHAKES, handshakes)?;
    page.one(&catalog::HANDSHAKE_TIME, Value::Times(mesh.handshake_time()))?;
    let pool = To::ALL.into_iter().flat_map(|to| {
        let (active, idle) = mesh.connections(to);
        [("active", active), ("idle", idle)].map(|(state, n)| ([to.name(), state], Value::Level(n as f64)))
    });
    page.family(&catalog::POOL, pool)?;
    page.one(&catalog::POOL_TARGETS, Value::Level(mesh.pooled_targets() as f64))?;
    let clients = mesh
        .clients()
        .map(|(key, open)| ([key], Value::Level(open as f64)));
    page.family(&catalog::CLIENTS, clients)
}

fn inbound(page: &mut Page<'_>, mesh: &Tallies, status: &Status, api: Option<ApiSide>) -> fmt::Result {
    let decisions = mesh.decisions().into_iter();
    let decisions = decisions.map(|((backend, outcome), n)| ([backend, outcome.to_owned()], Value::Count(n)));
    page.family(&catalog::DECISIONS, decisions)?;
    if let Some(api) = api {
        let requests = api.requests.read().into_iter();
        let requests = requests.map(|((route, status), n)| ([route, status.to_string()], Value::Count(n)));
        page.family(&catalog::API_REQUESTS, requests)?;
        let (nodes, present) = {
            let status = api.status.borrow();
            (status.nodes, status.present)
        };
        let nodes = [("present", present), ("silent", nodes.saturating_sub(present))];
        page.family(&catalog::NODES, nodes.map(|(state, n)| ([state], count(n))))?;
    }
    let Some(node) = &status.node else {
        return Ok(());
    };
    let mut peers = BTreeMap::new();
    for peer in &node.peers {
        let path = match peer.path {
            Path::Idle => "idle",
            Path::Direct(_) => "direct",
            Path::Relayed(_) => "relayed",
        };
        let online = if peer.online { "true" } else { "false" };
        *peers.entry([path, online]).or_default() += 1;
    }
    page.family(
        &catalog::VPN_PEERS,
        peers.into_iter().map(|(labels, n)| (labels, count(n))),
    )
}

fn streams(page: &mut Page<'_>, mesh: &Tallies) -> fmt::Result {
    let all = mesh.sessions();
    let ended = all.iter().flat_map(|((kind, name), sessions)| {
        let ended = sessions.ended.iter();
        ended.map(move |(outcome, n)| ([*kind, name, outcome], Value::Count(*n)))
    });
    page.family(&catalog::SESSIONS, ended)?;
    let open = all.iter();
    let open =
        open.map(|((kind, name), sessions)| ([*kind, name.as_str()], Value::Level(sessions.open as f64)));
    page.family(&catalog::OPEN_SESSIONS, open)?;
    let bytes = all.iter().flat_map(|((kind, name), sessions)| {
        let both = [("received", sessions.received), ("sent", sessions.sent)];
        both.map(|(direction, bytes)| ([*kind, name.as_str(), direction], Value::Count(bytes)))
    });
    page.family(&catalog::SESSION_BYTES, bytes)
}

fn reconcile(page: &mut Page<'_>, status: &Status, sources: &Sources) -> fmt::Result {
    let yes = |yes: bool| Value::Level(f64::from(u8::from(yes)));
    page.one(
        &catalog::GENERATION,
        Value::Level(status.generation.unwrap_or(0).into()),
    )?;
    let conditions = status.conditions.iter();
    let conditions = conditions.map(|condition| ([format!("{:?}", condition.kind)], yes(condition.holds())));
    page.family(&catalog::CONDITION, conditions)?;
    let services = status.services.iter();
    let services = services.map(|(name, service)| ([name], yes(service.state == "up")));
    page.family(&catalog::SERVICE_UP, services)?;
    page.one(&catalog::OWED, yes(status.owed))?;
    let counters = &status.counters;
    page.one(&catalog::RECONCILES, Value::Count(counters.reconciles))?;
    page.one(&catalog::RECONCILE_TIME, Value::Times(sources.reconciles.read()))?;
    let changes = [
        ("applied", counters.applied),
        ("refused", counters.refused),
        ("rolled_back", counters.rolled_back),
        ("failed", counters.failed),
    ];
    let changes = changes.map(|(outcome, n)| ([outcome], Value::Count(n)));
    page.family(&catalog::CHANGES, changes)?;
    let decided = [
        ("confirmed", counters.confirmed),
        ("not_confirmed", counters.not_confirmed),
        ("gone_back", counters.gone_back),
    ];
    let decided = decided.map(|(decision, n)| ([decision], Value::Count(n)));
    page.family(&catalog::DECIDED, decided)?;
    page.one(&catalog::HELD, yes(status.rollout.held.is_some()))?;
    page.one(&catalog::UNCONFIRMED, yes(status.rollout.unconfirmed.is_some()))?;
    let version = status.config.observed_generation;
    page.one(&catalog::CONFIG, Value::Level(version as f64))?;
    let drift = Drift::ALL.map(|kind| {
        let count = counters.drift.get(&kind).copied().unwrap_or(0);
        ([kind.name()], Value::Count(count))
    });
    page.family(&catalog::DRIFT, drift)?;
    page.one(&catalog::STARTED, Value::Count(counters.programs_started))?;
    let success = status
        .last_success
        .map_or(0.0, |at| at.as_millisecond() as f64 / 1e3);
    page.one(&catalog::SUCCESS, Value::Level(success))?;
    let (not_after, certificates) = {
        let observed = sources.observed.borrow();
        let not_after = observed.identity.as_ref().map(|identity| identity.not_after);
        (not_after, observed.certificates)
    };
    let not_after = not_after.map(|at| ([""; 0], Value::Level(since_epoch(at))));
    page.family(&catalog::NOT_AFTER, not_after)?;
    let certificates = [
        ("obtained", certificates.obtained),
        ("failed", certificates.failed),
    ];
    let certificates = certificates.map(|(outcome, n)| ([outcome], Value::Count(n)));
    page.family(&catalog::CERTIFICATES, certificates)
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn process(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.family(
        &catalog::BUILD,
        [([env!("CARGO_PKG_VERSION")], Value::Level(1.0))],
    )?;
    let dropped = log::dropped().map(|(log, lines)| ([log], Value::Count(lines)));
    page.family(&catalog::LOG_DROPPED, dropped)?;
    let now = Process::look();
    let start = status.started_at.map(|at| at.as_millisecond() as f64 / 1e3);
    let level = |number: Option<u64>| number.map(|number| Value::Level(number as f64));
    for (metric, value) in [
        (&catalog::CPU, now.cpu.map(Value::Sum)),
        (&catalog::RSS, level(now.resident)),
        (&catalog::VIRTUAL, level(now.virtual_)),
        (&catalog::FDS, level(now.fds)),
        (&catalog::MAX_FDS, level(now.max_fds)),
        (&catalog::THREADS, level(now.threads)),
        (&catalog::START, start.map(Value::Level)),
    ] {
        if let Some(value) = value {
            page.one(metric, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::metrics::page::Format;
    use crate::reconcile::status::{Condition, ConditionKind, Counters, Truth};

    /// What is told of reconciles, and nothing else.
    #[derive(Debug)]
    struct Reconciles(Sources);

    impl Collector for Reconciles {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            reconcile(&mut Page(encoder), &self.0.status.borrow(), &self.0)
        }
    }

    #[test]
    fn every_outcome_has_a_series_of_its_own() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let mut status = Status {
            owed: true,
            counters: Counters {
                reconciles: 1,
                applied: 2,
                refused: 3,
                rolled_back: 4,
                failed: 5,
                drift: Drift::ALL.into_iter().zip(20..).collect(),
                programs_started: 6,
                confirmed: 7,
                not_confirmed: 8,
                gone_back: 9,
            },
            ..Status::default()
        };
        status.conditions.push(Condition {
            kind: ConditionKind::VpnJoined,
            status: Truth::True,
            reason: String::new(),
            message: String::new(),
            since: at,
        });
        let page = |status: &Status| {
            let sources = Sources {
                status: watch::channel(status.clone()).1,
                observed: watch::channel(Observed::default()).1,
                reconciles: Arc::default(),
            };
            Format::OpenMetrics.page(Reconciles(sources)).unwrap()
        };
        let changes = |outcome: &str| format!("reconcile_changes_total{{outcome=\"{outcome}\"}}");
        let decisions = |it: &str| format!("rollout_decisions_total{{decision=\"{it}\"}}");
        let text = page(&status);
        for (series, value) in [
            ("reconcile_owed".to_owned(), 1.0),
            ("reconciles_total".to_owned(), 1.0),
            (changes("applied"), 2.0),
            (changes("refused"), 3.0),
            (changes("rolled_back"), 4.0),
            (changes("failed"), 5.0),
            ("reconcile_programs_started_total".to_owned(), 6.0),
            (decisions("confirmed"), 7.0),
            (decisions("not_confirmed"), 8.0),
            (decisions("gone_back"), 9.0),
            ("condition{type=\"VpnJoined\"}".to_owned(), 1.0),
            ("rollout_held".to_owned(), 0.0),
            ("rollout_unconfirmed".to_owned(), 0.0),
        ] {
            let line = format!("dstack_vpc_{series} ");
            let mut found = text.lines().filter_map(|it| it.strip_prefix(&line));
            assert_eq!(
                found.next().and_then(|it| it.parse().ok()),
                Some(value),
                "{series}\n{text}"
            );
        }
        for (kind, count) in Drift::ALL.into_iter().zip(20..) {
            let line = format!("drift_repaired_total{{kind=\"{}\"}} {count}\n", kind.name());
            assert!(text.contains(&line), "{line}{text}");
        }

        let rollout = |it: serde_json::Value| serde_json::from_value(it).unwrap();
        let held = json!({"generation": 1, "since": at, "why": "", "input": ""});
        status.rollout = rollout(json!({ "held": held }));
        let text = page(&status);
        assert!(
            text.contains("rollout_held 1") && text.contains("rollout_unconfirmed 0"),
            "{text}"
        );
        status.rollout = rollout(json!({"unconfirmed": {"back_to": 1, "until": at}}));
        let text = page(&status);
        assert!(
            text.contains("rollout_held 0") && text.contains("rollout_unconfirmed 1"),
            "{text}"
        );
    }
}
