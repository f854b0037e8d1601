//! What the machine says of itself: each fact with its source and its age.

mod ask;
mod assume;
pub(crate) mod backoff;
mod derp_map;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod gateway;
pub(crate) mod host_shared;
mod keep_derp_map;
mod keep_identity;
mod look;
pub mod ports;
pub mod process;
mod programs;
mod remember;
mod rows;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::names::{AppId, InstanceId};
use crate::spec::{AgentAddr, Gateway};

pub use assume::{AssumeError, assume};
pub use derp_map::DerpMap;
pub use look::{first, look};
pub use programs::{ProgramScanner, host_facts};
pub use rows::Row;
pub use watch::Watcher;

/// A value the machine told us.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact<T> {
    pub value: T,
    /// Who said so, in words: `guest agent at unix:/run/dstack.sock`, `--assume`.
    pub source: String,
    pub at: SystemTime,
}

impl<T> Fact<T> {
    /// A fact learned just now.
    pub fn now(value: T, source: impl Into<String>) -> Self {
        Self {
            value,
            source: source.into(),
            at: SystemTime::now(),
        }
    }
}

/// All that is known at one moment, and what could not be had.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub facts: Facts,
    /// The certificate whose folder is `facts.identity`.
    pub identity: Option<Arc<Identity>>,
    pub problems: Vec<Problem>,
    pub certificates: Certificates,
}

/// Certificates that were asked for since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Certificates {
    pub obtained: u64,
    pub failed: u64,
}

/// A fact that could not be had or refreshed; it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub what: Topic,
    /// What happened and what to do.
    pub message: String,
    /// When it began; the same trouble with other words keeps its beginning.
    pub since: SystemTime,
    /// When it is tried again; `None` for a single look.
    pub retry_at: Option<SystemTime>,
}

/// What a problem is about; at most one problem each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// The guest agent and what it says of us.
    Agent,
    /// The gateway's domain, and the host's file that names the gateways.
    Gateway,
    /// The TLS certificate.
    Identity,
    /// The public map of relays, for a server that has no others.
    Relays,
}

impl Topic {
    /// As shown to people and machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Identity => "identity",
            Self::Relays => "relays",
        }
    }
}

/// What is known now. A fact that could not be had is `None`; why is in the conditions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub agent: Option<Fact<AgentAddr>>,
    pub app_id: Option<Fact<AppId>>,
    pub instance_id: Option<Fact<InstanceId>>,
    pub gateway: Option<Fact<Gateway>>,
    pub identity: Option<Fact<IdentityFiles>>,
    /// The public relays, for servers that use them.
    pub derp_map: Option<Fact<Arc<DerpMap>>>,
    pub programs: Programs,
    pub host: HostFacts,
    /// This node's Headscale is reached by plain HTTP under a name, so tailscaled must not insist on TLS.
    pub plain_headscale: bool,
}

/// The stored certificate that the rendered files refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// `<state>/identity/<number>`, holding `key.pem`, `chain.pem` (leaf, App CA) and `ca.pem` (root).
    pub dir: PathBuf,
}

/// Which consumers are installed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Programs {
    pub nginx: Option<Fact<Installed>>,
    pub supervisord: Option<Fact<Installed>>,
    pub headscale: Option<Fact<Installed>>,
    pub tailscaled: Option<Fact<Installed>>,
    /// Its command line.
    pub tailscale: Option<Fact<Installed>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub path: PathBuf,
    pub version: Version,
}

/// `major.minor.patch`; what could not be read is 0.0.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version(pub u16, pub u16, pub u16);

#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostFacts {
    /// Effective uid 0.
    pub root: bool,
    /// The first of `nginx`, `www-data`, `nobody` that exists, with its primary group.
    pub web_user: Option<(String, String)>,
    /// `/dev/net/tun` can be opened.
    pub tun: bool,
    /// The kernel has IPv6.
    pub ipv6: bool,
}
