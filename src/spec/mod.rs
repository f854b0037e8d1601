//! `vpc.toml` and the environment, parsed once into a [`Spec`] that cannot be wrong.

pub mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::names::{BackendName, HostPort, NodeName, NodeType};
pub use values::*;

/// Everything the user wants, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub role: Role,
    pub allowed_apps: AllowedApps,
    pub dstack: Dstack,
    pub mesh: Mesh,
    pub backends: Vec<Backend>,
    pub server: Server,
    pub vpn: Vpn,
    pub node: Node,
    pub registry: Registry,
    pub identity: IdentityPolicy,
    pub nginx: Nginx,
    pub supervisor: Supervisor,
    pub headscale: Headscale,
    pub tailscale: Tailscale,
    pub reconcile: Reconcile,
    pub log: Log,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Dstack {
    pub agent: AgentChoice,
    pub gateway_domain: GatewayChoice,
    pub host_shared_dir: PathBuf,
    /// How long one call to the guest agent may take (a KMS behind it takes seconds). 30s
    pub agent_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    pub client_listen: SocketAddr,
    pub auth_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub https_listen: SocketAddr,
    pub front: Front,
    /// TCP + TLS to a peer, in all. 10s
    pub connect_timeout: Duration,
    /// From the end of the request to the head of its response. 60s
    pub response_timeout: Duration,
    /// How long an unused pooled connection is kept; below the gateway's 10 minutes. 5m
    pub idle_timeout: Duration,
    /// How long open requests may go on after a listener moved or the daemon was told to stop. 30s
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    pub name: BackendName,
    /// `None` is `_`: every Host that no other backend names.
    pub server_name: Option<crate::names::DnsName>,
    pub upstream: Vec<HostPort>,
    pub allowed_apps: AllowedApps,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    pub url: ServerUrl,
    pub headscale_listen: SocketAddr,
    pub api_listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Vpn {
    pub prefix: ipnet::Ipv4Net,
    pub base_domain: crate::names::DnsName,
    pub nameservers: Vec<std::net::IpAddr>,
    pub derp: Derp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Always there when the role has a node.
    pub name: Option<NodeName>,
    pub node_type: Option<NodeType>,
    pub server_app_id: ServerAppId,
    /// `auto`: a TUN device where the machine allows one.
    pub tun: Tun,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Registry {
    pub store: Store,
    /// `http://` or `https://` URLs of etcd.
    pub endpoints: Vec<url::Url>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct IdentityPolicy {
    /// Asked-for validity of the TLS certificate, where the agent honours it. 30d
    pub lifetime: Duration,
    /// Renewed when less than this is left. 10d
    pub renew_before: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Nginx {
    /// Name or path. "nginx"
    pub program: PathBuf,
    /// The workers' user when started as root. "auto"
    pub user: Option<String>,
    /// 0 = as many as processors ("auto").
    pub workers: u16,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Supervisor {
    pub program: PathBuf,
    /// Where the children's output goes: "stdout" (of supervisord) or "files" below `<state>/log`.
    pub output: ChildOutput,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Headscale {
    pub program: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tailscale {
    /// `tailscaled`
    pub program: PathBuf,
    /// UDP port of tailscaled, 0 = any. 0
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Reconcile {
    /// Look for drift this often even when nothing was heard. 30s
    pub interval: Duration,
    /// Quiet time after the last file event before the file is read. 50ms
    pub debounce: Duration,
    /// Generations kept for rollback. 10
    pub keep: u16,
    /// How long the new configuration may take to prove itself before it is rolled back. 10s
    pub probe_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}
