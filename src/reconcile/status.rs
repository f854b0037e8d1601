//! What the daemon says of itself: serialised as it is by `status --json`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
    /// Digest of what was last read.
    pub observed: String,
    /// Digest of what serves. The same as `observed` unless that was refused.
    pub live: String,
}

/// In the manner of Kubernetes: `True`, `False` or `Unknown`, since when, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: bool,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    pub since: Timestamp,
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
pub struct Counters {
    pub reconciles: u64,
    pub applied: u64,
    pub refused: u64,
    pub rolled_back: u64,
    pub drift_repaired: u64,
    pub programs_started: u64,
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

impl Status {
    /// The condition of one kind, once the first reconcile has ended.
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Takes a condition away that does not apply any more.
    pub fn unset(&mut self, kind: ConditionKind) {
        self.conditions.retain(|condition| condition.kind != kind);
    }

    /// Sets a condition; `since` moves only when `status` or `reason` changes.
    pub fn set(&mut self, kind: ConditionKind, status: bool, reason: &str, message: impl Into<String>) {
        let message = message.into();
        match self
            .conditions
            .iter_mut()
            .find(|condition| condition.kind == kind)
        {
            Some(condition) => {
                if condition.status != status || condition.reason != reason {
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
