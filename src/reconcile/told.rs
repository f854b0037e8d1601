//! What a round comes to: what it found and did, as status, log lines and an answer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio::time::Instant;

use super::conditions::conditions;
use super::control::Answer;
use super::drift::Found;
use super::rollout::Rollout;
use super::round::{Aim, Attempt};
use super::source::Source;
use super::status::{
    Condition, ConditionKind, ConfigStatus, Event, FactStatus, IdentityStatus, LastError, ServiceStatus,
    Status,
};
use super::wall;
use crate::api::ApiStatus;
use crate::apply::{Applied, Left, Took};
use crate::facts::Observed;
use crate::node::NodeStatus;
use crate::plan::{ActionKind, Plan, Present, ServiceState};
use crate::spec::Spec;

/// Events that are remembered.
pub(super) const HISTORY: usize = 50;

/// What one reconcile gathers for the telling.
pub struct Round<'a> {
    cause: &'a str,
    pub(super) seen: &'a Observed,
    /// Why the configuration could not be read.
    pub(super) invalid: Option<String>,
    /// Why what it says could not be brought about, and what serves instead.
    refused: Option<(String, Left)>,
    waiting: bool,
    /// What was tried has served before: only what is around it has changed.
    pub(super) again: bool,
    /// What serves now, and whose settings they are.
    pub(super) live: Option<(Applied, Plan, Aim)>,
    pub(super) drifted: Vec<Found>,
}

impl<'a> Round<'a> {
    /// Nothing was tried yet; `invalid` is why the file cannot be read.
    pub fn new(cause: &'a str, seen: &'a Observed, invalid: Option<String>) -> Self {
        Self {
            cause,
            seen,
            invalid,
            refused: None,
            waiting: false,
            again: false,
            live: None,
            drifted: Vec::new(),
        }
    }

    /// A wish was tried.
    pub fn tried(&mut self, attempt: Attempt, aim: Aim) {
        match attempt {
            Attempt::Live {
                applied,
                plan,
                drifted,
                ..
            } => {
                self.live = Some((applied, plan, aim));
                self.drifted = drifted;
            }
            Attempt::Failed { message, left } => self.refused = Some((message, left)),
            Attempt::TooSoon(_) => self.waiting = true,
        }
    }
}

/// What there is to tell beside what the round did.
pub struct Around<'a> {
    pub rollout: &'a Rollout,
    pub node: NodeStatus,
    pub api: Option<ApiStatus>,
}

/// What a round comes to, for those who watch and for the one who asked.
pub struct Told {
    pub status: Status,
    pub answer: Answer,
    /// How many events of the history are new.
    pub(super) events: usize,
}

impl Status {
    /// What is so after a round. It depends on nothing else, so that it can be held against any machine.
    pub fn told(
        self,
        source: &Source,
        live: Option<&Spec>,
        present: &Present,
        around: Around<'_>,
        round: &Round<'_>,
        retry: Option<Instant>,
    ) -> Told {
        let mut status = self;
        status.counters.reconciles += 1;
        status.role = live.map(|spec| spec.role.to_string()).unwrap_or_default();
        status.generation = present.generation;
        status.owed = present.owed;
        status.owed_actions = owed(present);
        status.rollout.clone_from(around.rollout);
        status.next_retry = retry.map(wall);
        status.services = services(present);
        status.facts = facts(round.seen);
        status.identity = identity(round.seen);
        status.node = live.filter(|spec| spec.role.node).map(|_| around.node);
        status.api = around.api;
        status.notes = round
            .live
            .as_ref()
            .map(|(_, plan, _)| plan.notes.clone())
            .unwrap_or_default();
        let proven = matches!(&round.live, Some((applied, _, Aim::File)) if applied.proven);
        config(&mut status.config, source, proven);
        let events = happened(&mut status, round);
        if proven {
            status.last_success = Some(Timestamp::now());
        }
        conditions(&mut status, present, round);
        let answer = answer(&status, round);
        Told {
            status,
            answer,
            events,
        }
    }
}

fn config(config: &mut ConfigStatus, source: &Source, live: bool) {
    source.digest().clone_into(&mut config.observed);
    (config.fingerprint, config.generation) = source.version();
    if source.look_again().is_none() {
        config.observed_generation = config.generation;
    }
    if live {
        config.live.clone_from(&config.observed);
    }
}

fn owed(present: &Present) -> Vec<String> {
    let owed = crate::plan::owed(present).into_iter();
    owed.map(|kind| {
        let (target, verb, _) = crate::plan::words(kind);
        format!("{target}: {verb}")
    })
    .collect()
}

pub(super) fn services(present: &Present) -> BTreeMap<String, ServiceStatus> {
    let say = |state| match state {
        ServiceState::Up => "up",
        ServiceState::StoppedByOperator => "stopped by hand",
        ServiceState::Down => "down",
    };
    let services = present.services.iter().flatten();
    services
        .map(|(name, service)| {
            let state = say(service.state).to_owned();
            (
                name.clone(),
                ServiceStatus {
                    state,
                    pid: service.pid,
                    detail: service.detail.clone(),
                },
            )
        })
        .collect()
}

fn facts(seen: &Observed) -> Vec<FactStatus> {
    let rows = seen.facts.rows().into_iter();
    rows.map(|row| FactStatus {
        key: row.key.to_string(),
        value: row.value,
        source: row.source,
        age_seconds: row.age.map(|age| age.as_secs()),
    })
    .collect()
}

fn identity(seen: &Observed) -> Option<IdentityStatus> {
    let identity = seen.identity.as_ref()?;
    Some(IdentityStatus {
        app_id: identity.app_id.map(|id| id.to_string()),
        instance_id: identity.instance_id.map(|id| id.to_string()),
        not_after: Timestamp::try_from(identity.not_after).unwrap_or(Timestamp::MAX),
        folder: identity.dir.display().to_string(),
    })
}

/// Counters, history, log: what this round did. How many events there are to remember.
fn happened(status: &mut Status, round: &Round<'_>) -> usize {
    let mut events = 0;
    let problem = match (&round.invalid, &round.refused) {
        (Some(invalid), _) => Some(invalid.clone()),
        (None, Some((message, Left::Unproven(why)))) => Some(format!("{message}; {why}")),
        (None, Some((message, _))) => Some(message.clone()),
        (None, None) => None,
    };
    if let Some((message, left)) = &round.refused {
        let outcome = match left {
            Left::Untouched => "refused",
            Left::RolledBackTo(_) => "rolled back",
            Left::Unproven(_) => "failed",
        };
        match left {
            Left::Untouched => status.counters.refused += 1,
            Left::RolledBackTo(_) => status.counters.rolled_back += 1,
            Left::Unproven(_) => status.counters.failed += 1,
        }
        tracing::error!(
            cause = round.cause,
            serving = status.generation,
            "{outcome}: {message}"
        );
        remember(status, outcome, round.cause, message.clone(), Took::default());
        events += 1;
    }
    for found in &round.drifted {
        *status.counters.drift.entry(found.kind).or_default() += 1;
    }
    let found: Vec<_> = round.drifted.iter().map(ToString::to_string).collect();
    let cause = match found.is_empty() {
        true => round.cause.to_owned(),
        false => format!("{}: {}", round.cause, found.join(", ")),
    };
    let changed = round.live.as_ref().filter(|(applied, ..)| applied.changed);
    if let Some((applied, plan, _)) = changed {
        status.counters.applied += 1;
        status.counters.programs_started += plan
            .actions
            .iter()
            .filter(|a| matches!(a.kind, ActionKind::Start(_)))
            .count() as u64;
        let detail = summary(plan);
        tracing::info!(
            generation = applied.generation,
            proven = applied.proven,
            stage_ms = applied.took.stage_ms,
            act_ms = applied.took.act_ms,
            cause,
            "live: {detail}"
        );
        remember(
            status,
            if applied.proven { "live" } else { "rendered" },
            &cause,
            detail,
            applied.took,
        );
        events += 1;
    } else if !found.is_empty() {
        let detail = "it runs again".to_owned();
        tracing::warn!(cause, "{detail}");
        remember(status, "repaired", &cause, detail, Took::default());
        events += 1;
    }
    match problem {
        Some(message) => {
            let new = status
                .last_error
                .as_ref()
                .is_none_or(|last| last.message != message);
            if new && round.invalid.is_some() {
                status.counters.refused += 1;
                tracing::error!("the configuration is not used, what served goes on serving:\n{message}");
                remember(status, "refused", round.cause, message.clone(), Took::default());
                events += 1;
            }
            if new {
                status.last_error = Some(LastError {
                    message,
                    at: Timestamp::now(),
                });
            }
        }
        None if !round.waiting => status.last_error = None,
        None => {}
    }
    events
}

/// Takes an event into the history.
pub(super) fn remember(status: &mut Status, outcome: &str, cause: &str, detail: String, took: Took) {
    status.history.push(Event {
        at: Timestamp::now(),
        generation: status.generation,
        outcome: outcome.to_owned(),
        cause: cause.to_owned(),
        detail,
        stage_ms: took.stage_ms,
        act_ms: took.act_ms,
    });
    let excess = status.history.len().saturating_sub(HISTORY);
    status.history.drain(..excess);
}

/// `nginx/nginx.conf; nginx reload`.
fn summary(plan: &Plan) -> String {
    let files = plan.files.iter().map(|file| file.path.clone());
    let actions = plan.actions.iter().map(|action| {
        let (target, verb, _) = crate::plan::words(action.kind);
        format!("{target}: {verb} ({})", action.reason)
    });
    files.chain(actions).collect::<Vec<_>>().join("; ")
}

fn answer(status: &Status, round: &Round<'_>) -> Answer {
    let configured = status.condition(ConditionKind::Configured);
    let wished = configured.is_some_and(Condition::holds);
    let held = matches!(round.live, Some((_, _, Aim::Held)));
    let live = wished || held;
    let changed = round.live.as_ref().is_some_and(|(applied, ..)| applied.changed);
    let message = match (&round.live, &round.refused) {
        (Some((applied, plan, _)), _) if live && applied.changed => {
            format!("generation {} is live: {}", applied.generation, summary(plan))
        }
        (Some((applied, ..)), _) if live => {
            format!("nothing to do: generation {} is live", applied.generation)
        }
        (_, Some((message, Left::RolledBackTo(number)))) => {
            format!("{message}\nrolled back: generation {number} serves again")
        }
        (_, Some((message, Left::Untouched))) => format!("{message}\nnothing was changed"),
        (_, Some((message, Left::Unproven(why)))) => format!("{message}\n{why}"),
        _ => configured
            .map(|condition| condition.message.clone())
            .unwrap_or_default(),
    };
    Answer {
        live,
        changed,
        generation: status.generation,
        message,
    }
}
