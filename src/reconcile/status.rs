//! What the daemon says of itself: serialised as it is by `status --json`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use super::drift::Drift;
use super::reasons::{self, Reason};
use super::rollout::Rollout;
use crate::api::ApiStatus;
use crate::node::NodeStatus;

/// The whole answer of `GET /status` on the daemon's socket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub started_at: Option<Timestamp>,
    pub role: String,
    /// The generation that serves.
    pub generation: Option<u32>,
    /// Digest of the configuration text last read, and of the one that serves.
    pub config: ConfigStatus,
    pub conditions: Vec<Condition>,
    /// What is wrong, in sentences: first what keeps this machine from serving, and the cause before what follows from it.
    #[serde(default)]
    pub problems: Vec<String>,
    pub services: BTreeMap<String, ServiceStatus>,
    pub identity: Option<IdentityStatus>,
    /// This machine in the VPN (node roles).
    pub node: Option<NodeStatus>,
    /// The VPC API and what it needs (server roles).
    pub api: Option<ApiStatus>,
    pub facts: Vec<FactStatus>,
    pub last_error: Option<LastError>,
    /// When the machine was last found or made to be as the configuration says, and proven.
    #[serde(default)]
    pub last_success: Option<Timestamp>,
    pub next_retry: Option<Timestamp>,
    /// Actions that were begun and are not proven yet.
    pub owed: bool,
    /// Which those are.
    #[serde(default)]
    pub owed_actions: Vec<String>,
    /// What an operator decided over the file.
    pub rollout: Rollout,
    /// What is left out or left alone on purpose.
    pub notes: Vec<String>,
    pub counters: Counters,
    /// Newest last.
    pub history: Vec<Event>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file, or `environment`.
    pub source: String,
    /// Which version of the file and the templates beside it is there now: counted by the daemon, from 1 at its start.
    #[serde(default)]
    pub generation: u64,
    /// Which version was reconciled last: made live, refused, or held back. As long as it is less than `generation`,
    /// what is said here is about an earlier version.
    #[serde(default, rename = "observedGeneration")]
    pub observed_generation: u64,
    /// Stands for the version that `generation` counted.
    #[serde(skip)]
    pub(super) fingerprint: String,
    /// Digest of what was last read.
    pub observed: String,
    /// Digest of what serves. The same as `observed` unless that was refused.
    pub live: String,
}

/// In the manner of Kubernetes: whether it is so, why, and since when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: Truth,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// When `status` last changed.
    pub since: Timestamp,
}

impl Condition {
    /// Whether it is known to be so.
    pub fn holds(&self) -> bool {
        self.status == Truth::True
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Truth {
    True,
    False,
    /// The first reconcile has not ended.
    Unknown,
}

impl From<bool> for Truth {
    fn from(is: bool) -> Self {
        match is {
            true => Self::True,
            false => Self::False,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionKind {
    /// Everything that should serve does.
    Ready,
    /// What `vpc.toml` says now is what serves.
    Configured,
    /// A valid certificate with an app id.
    IdentityValid,
    /// supervisord and its programs run.
    ServicesHealthy,
    /// This machine has an address in the VPN (node roles).
    VpnJoined,
    /// Nodes can register and be found (server roles).
    ApiServing,
    /// Something is not as it should be; what serves goes on serving.
    Degraded,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub state: String,
    pub pid: Option<i32>,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdentityStatus {
    pub app_id: Option<String>,
    pub instance_id: Option<String>,
    pub not_after: Timestamp,
    pub folder: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FactStatus {
    pub key: String,
    pub value: String,
    pub source: String,
    /// `None`: looked at just now.
    pub age_seconds: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    pub message: String,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    pub reconciles: u64,
    pub applied: u64,
    pub refused: u64,
    pub rolled_back: u64,
    /// Neither live nor rolled back: something is owed.
    pub failed: u64,
    /// What was put right, by what had been wrong.
    pub drift: BTreeMap<Drift, u64>,
    pub programs_started: u64,
    /// By operators, with `dstack-vpc confirm`.
    pub confirmed: u64,
    /// Taken back because nobody confirmed it.
    pub not_confirmed: u64,
    /// By operators, with `dstack-vpc rollback`.
    pub gone_back: u64,
}

/// One line of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: Timestamp,
    pub generation: Option<u32>,
    /// `applied`, `refused`, `rolled back`, …
    pub outcome: String,
    /// What made it happen.
    pub cause: String,
    /// What changed, or why not.
    pub detail: String,
    pub stage_ms: u64,
    pub act_ms: u64,
}

/// Events in a row that tell the same: what is refused is tried again and again.
pub fn runs(events: &[Event]) -> impl DoubleEndedIterator<Item = &[Event]> {
    events.chunk_by(|a, b| (a.generation, &a.outcome, &a.detail) == (b.generation, &b.outcome, &b.detail))
}

/// How the machine is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The first reconcile has not ended.
    Starting,
    Ready,
    /// It serves, but not everything is as it should be.
    Degraded,
    NotReady,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::NotReady => "not ready",
        }
    }
}

impl Status {
    /// How the machine is; [`Status::problems`] say why.
    pub fn verdict(&self) -> Verdict {
        let find = |kind| {
            self.condition(kind)
                .map_or(Truth::Unknown, |condition| condition.status)
        };
        match (find(ConditionKind::Ready), find(ConditionKind::Degraded)) {
            (Truth::Unknown, _) => Verdict::Starting,
            (Truth::False, _) => Verdict::NotReady,
            (Truth::True, Truth::True) => Verdict::Degraded,
            (Truth::True, _) => Verdict::Ready,
        }
    }

    /// What is known before the first reconcile has ended: nothing.
    pub(super) fn starting(&mut self) {
        use ConditionKind::{Configured, Degraded, IdentityValid, Ready, ServicesHealthy};
        for kind in [Configured, IdentityValid, ServicesHealthy, Ready, Degraded] {
            let message = "the first reconcile has not ended";
            self.put(kind, Truth::Unknown, reasons::STARTING, message.to_owned());
        }
    }

    /// The condition of one kind; `None` where the role has no such thing.
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Takes a condition away that does not apply any more.
    pub fn unset(&mut self, kind: ConditionKind) {
        self.conditions.retain(|condition| condition.kind != kind);
    }

    /// Sets a condition; `since` moves only when it becomes another one.
    pub fn set(&mut self, reason: Reason, message: impl Into<String>) {
        self.put(reason.of, reason.holds.into(), reason.word, message.into());
    }

    fn put(&mut self, kind: ConditionKind, status: Truth, reason: &str, message: String) {
        match self
            .conditions
            .iter_mut()
            .find(|condition| condition.kind == kind)
        {
            Some(condition) => {
                if condition.status != status {
                    condition.since = Timestamp::now();
                }
                condition.status = status;
                reason.clone_into(&mut condition.reason);
                condition.message = message;
            }
            None => self.conditions.push(Condition {
                kind,
                status,
                reason: reason.to_owned(),
                message,
                since: Timestamp::now(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_moves_with_the_status_alone() {
        let mut status = Status::default();
        status.starting();
        let past = Timestamp::UNIX_EPOCH;
        let mut after = |reason: Reason| {
            let kind = reason.of;
            let condition = status.conditions.iter_mut().find(|it| it.kind == kind).unwrap();
            condition.since = past;
            status.set(reason, format!("because of {}", reason.word));
            let condition = status.condition(kind).unwrap().clone();
            assert_eq!(condition.reason, reason.word);
            (condition.status, condition.since == past)
        };
        let other = Reason {
            word: "Other",
            ..reasons::NOT_READY
        };
        assert_eq!(after(reasons::NOT_READY), (Truth::False, false), "it was unknown");
        assert_eq!(after(other), (Truth::False, true));
        assert_eq!(after(reasons::READY), (Truth::True, false));
        assert_eq!(after(reasons::READY), (Truth::True, true));
    }

    #[test]
    fn conditions_are_written_as_those_of_kubernetes() {
        let mut status = Status::default();
        status.starting();
        status.set(reasons::READY, "generation 1 serves");
        let json = serde_json::to_value(&status).unwrap();
        let said: Vec<_> = json["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["type"].as_str().unwrap(), it["status"].as_str().unwrap()))
            .collect();
        assert_eq!(
            said,
            [
                ("Configured", "Unknown"),
                ("IdentityValid", "Unknown"),
                ("ServicesHealthy", "Unknown"),
                ("Ready", "True"),
                ("Degraded", "Unknown")
            ]
        );
        assert_eq!(json["config"]["observedGeneration"], 0);
    }
}
