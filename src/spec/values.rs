//! The types of single keys.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::names::{AppId, DnsName, HostPort};

/// What this machine is; `mesh` is always part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Role {
    pub server: bool,
    pub node: bool,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedApps {
    /// Every app with a valid certificate.
    Any,
    /// These only.
    Only(BTreeSet<AppId>),
}

impl AllowedApps {
    pub fn allows(&self, app: &AppId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(apps) => apps.contains(app),
        }
    }
}

/// `dstack.agent`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentChoice {
    /// `$DSTACK_SIMULATOR_ENDPOINT`, else the first socket that exists.
    Auto,
    At(AgentAddr),
}

/// Where a guest agent listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentAddr {
    /// `unix:/path`
    Unix(PathBuf),
    /// `http://host:port`
    Http(HostPort),
}

/// `dstack.gateway_domain`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayChoice {
    Auto,
    Is(Gateway),
}

/// How targets are addressed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// `<id>-<port>s.<domain>:<port>`
    Domain { domain: DnsName, port: u16 },
    /// `fixed/host:port`: every target is reached there.
    Fixed(HostPort),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    Nginx,
    Builtin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerUrl {
    Auto,
    Is(url::Url),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Derp {
    Auto,
    Embedded,
    Public,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAppId {
    SelfApp,
    Is(AppId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tun {
    Auto,
    Device,
    Userspace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Embedded,
    Etcd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildOutput {
    Stdout,
    Files,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}
