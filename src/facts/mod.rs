//! What the machine says of itself: each fact with its source and its age.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::names::{AppId, InstanceId};
use crate::spec::{AgentAddr, Gateway};

/// A value the machine told us.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact<T> {
    pub value: T,
    /// Who said so, in words: `guest agent at unix:/run/dstack.sock`, `--assume`.
    pub source: String,
    pub at: SystemTime,
}

/// What is known now. A fact that could not be had is `None`; why is in the conditions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub agent: Option<Fact<AgentAddr>>,
    pub app_id: Option<Fact<AppId>>,
    pub instance_id: Option<Fact<InstanceId>>,
    pub gateway: Option<Fact<Gateway>>,
    pub identity: Option<Fact<IdentityFiles>>,
    pub programs: Programs,
    pub host: HostFacts,
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub path: PathBuf,
    pub version: Version,
}

/// `major.minor.patch`; what could not be read is 0.0.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
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
