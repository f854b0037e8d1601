//! The types of single keys.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::names::{AppId, DnsName, HostPort, NotA, parse_port};

/// What this machine is; `mesh` is always part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Role {
    pub server: bool,
    pub node: bool,
}

impl fmt::Display for Role {
    /// As it is written in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedApps {
    /// Every app with a valid certificate.
    Any,
    /// These only. Shared: the list may be long, and stands in several settings.
    Only(Arc<BTreeSet<AppId>>),
}

impl FromIterator<AppId> for AllowedApps {
    fn from_iter<I: IntoIterator<Item = AppId>>(apps: I) -> Self {
        Self::Only(Arc::new(apps.into_iter().collect()))
    }
}

impl AllowedApps {
    pub fn allows(&self, app: &AppId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(apps) => apps.contains(app),
        }
    }
}

/// Where a backend listens: at one address or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream(Vec<HostPort>);

impl Upstream {
    /// `None` of no address.
    pub fn new(addresses: Vec<HostPort>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self(addresses))
    }

    pub fn first(&self) -> &HostPort {
        &self.0[0]
    }
}

impl Deref for Upstream {
    type Target = [HostPort];

    fn deref(&self) -> &[HostPort] {
        &self.0
    }
}

impl DerefMut for Upstream {
    fn deref_mut(&mut self) -> &mut [HostPort] {
        &mut self.0
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

impl FromStr for AgentAddr {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        let not_a = || NotA::new("unix:/path/to/dstack.sock or http://host:port");
        if let Some(path) = s.strip_prefix("unix:") {
            // `unix:///path` is the same address written as a URL.
            let path = path.strip_prefix("//").unwrap_or(path);
            // Written again, two slashes would be taken for those of a URL.
            let name = path.trim_start_matches('/');
            let ok = path.starts_with('/') && !path.contains(char::is_control);
            return ok
                .then(|| Self::Unix(Path::new("/").join(name)))
                .ok_or_else(not_a);
        }
        let rest = s.strip_prefix("http://").ok_or_else(not_a)?;
        let host_port = rest.strip_suffix('/').unwrap_or(rest);
        host_port.parse().map(Self::Http).map_err(|_| not_a())
    }
}

impl fmt::Display for AgentAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(host_port) => write!(f, "http://{host_port}"),
        }
    }
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

impl FromStr for Gateway {
    type Err = NotA;

    /// A domain without a port has the gateway's usual one, 443.
    fn from_str(s: &str) -> Result<Self, NotA> {
        let not_a = || NotA::new("a domain such as apps.example.com:443, or fixed/host:port");
        if let Some(host_port) = s.strip_prefix("fixed/") {
            return host_port.parse().map(Self::Fixed).map_err(|_| not_a());
        }
        let (domain, port) = match s.split_once(':') {
            Some((domain, port)) => (domain, parse_port(port).map_err(|_| not_a())?),
            None => (s, 443),
        };
        Ok(Self::Domain {
            domain: domain.parse().map_err(|_| not_a())?,
            port,
        })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain { domain, port } => write!(f, "{domain}:{port}"),
            Self::Fixed(host_port) => write!(f, "fixed/{host_port}"),
        }
    }
}

/// `mesh.front`: who serves `http_listen` and `https_listen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// A supervised nginx.
    Nginx,
    /// The daemon itself; refused by this version.
    Builtin,
}

/// `protocol` of a backend: what peers speak to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Through the front, by Host.
    Http,
    /// Through the backend's own `listen`, byte by byte.
    Tcp,
}

/// `server.url`: where Headscale is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerUrl {
    /// `https://<own app id>-<port>.<gateway domain>`
    Auto,
    /// Host and port, no path.
    Is(url::Url),
}

/// `vpn.derp`: the relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Derp {
    /// Headscale's own, and the public ones where their map can be had.
    Auto,
    /// Headscale's own.
    Embedded,
    /// Those of the public map.
    Public,
    /// Those of a map in a file, at an absolute path.
    File(PathBuf),
}

/// `node.server_app_id`: whose VPN this node joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAppId {
    /// `self`: that of this very app.
    SelfApp,
    /// That of another app.
    Is(AppId),
}

/// `node.tun`: how packets get from the VPN to programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tun {
    /// A device where the machine allows one.
    Auto,
    /// A TUN device, which needs `NET_ADMIN`.
    Device,
    /// Inside tailscaled.
    Userspace,
}

/// `registry.store`: where the server keeps what it knows of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// In the state directory.
    Embedded,
    /// In the etcd of `registry.endpoints`.
    Etcd,
}

/// `supervisor.output`: where the output of the programs goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildOutput {
    /// To that of supervisord.
    Stdout,
    /// Below `<state>/log`.
    Files,
}

/// `log.level`: the least important messages that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for good in ["unix:/run/dstack.sock", "http://127.0.0.1:8090", "http://[::1]:1"] {
            assert_eq!(good.parse::<AgentAddr>().unwrap().to_string(), good);
        }
        for slashes in ["unix:///run/a", "unix:////run/a", "unix://///run/a"] {
            assert_eq!(slashes.parse::<AgentAddr>().unwrap().to_string(), "unix:/run/a");
        }
        for bad in [
            "",
            "unix:",
            "unix:dstack.sock",
            "/run/dstack.sock",
            "https://a:1",
            "http://a",
            "http://a:1/x",
        ] {
            assert!(bad.parse::<AgentAddr>().is_err(), "{bad:?}");
        }
        for good in ["apps.example.com:443", "fixed/127.0.0.1:9443", "fixed/[::1]:1"] {
            assert_eq!(good.parse::<Gateway>().unwrap().to_string(), good);
        }
        assert_eq!(
            "apps.example.com".parse::<Gateway>().unwrap().to_string(),
            "apps.example.com:443"
        );
        for bad in ["", "fixed/", "fixed/a", "a:0", "a b:1", "a:1/x", "a;b:443"] {
            assert!(bad.parse::<Gateway>().is_err(), "{bad:?}");
        }
    }
}
