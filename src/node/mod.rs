//! This machine as a node of the VPN: how it joins, stays, and says that it is there.

mod credentials;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod machine;
mod pace;
mod run;
mod server;
mod tailscale;
mod view;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::names::{AppId, InstanceId, NodeName, NodeType};
use crate::paths::StateDir;
pub(crate) use credentials::plain_headscale;

/// The running node: one task until it is cancelled.
pub struct Node {
    /// Wakes for news only, and a heartbeat is none.
    pub status: watch::Receiver<NodeStatus>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    /// Follows `settings` until cancelled.
    ///
    /// `None` at the start means that nothing is decided yet, and nothing is touched. `None` that is sent, even after
    /// `None`, says that this machine is not a node: `vpc/0/*` is removed. It is not logged out, so that it is the same
    /// node when it becomes one again.
    pub fn start(
        settings: watch::Receiver<Option<NodeSettings>>,
        state: StateDir,
        cancel: CancellationToken,
    ) -> Self {
        let (sender, status) = watch::channel(NodeStatus::default());
        let owner = run::Owner::new(state, sender);
        Self {
            status,
            cancel: cancel.clone(),
            task: tokio::spawn(owner.run(settings, cancel)),
        }
    }

    /// Ends the task and waits for it. tailscaled goes on: the machine stays in the VPN.
    pub async fn join(self) {
        self.cancel.cancel();
        if let Err(error) = self.task.await {
            tracing::error!("the node's task ended badly: {error}");
        }
    }
}

/// Everything the node needs to know. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSettings {
    pub name: NodeName,
    /// `None`: it joins, but is not announced.
    pub node_type: Option<NodeType>,
    pub server: Server,
    /// This machine's own ids; `None`: not known yet, so nothing can begin.
    pub app_id: Option<AppId>,
    pub instance_id: Option<InstanceId>,
    /// `mesh.client_listen`: the way to the server.
    pub mesh: SocketAddr,
    /// The command line of Tailscale; `None`: not installed.
    pub tailscale: Option<PathBuf>,
    /// With a TUN device, or in userspace.
    pub device: bool,
    /// `node.accept_dns`
    pub accept_dns: bool,
    /// `vpn.prefix` lies outside 100.64.0.0/10, which clients treat as their own.
    pub accept_routes: bool,
    /// `node.heartbeat`
    pub heartbeat: Duration,
    /// `node.silence`
    pub silence: Duration,
    /// The group that may read `vpc/0/*`, for nginx's workers; `None`: they run as we do.
    pub readers: Option<String>,
}

/// Where the VPC server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// In another machine: through our own mesh.
    App(AppId),
    /// The same, in another machine of this very app.
    SameApp,
    /// In this very machine (`server+node` of its own VPN): straight to its listeners.
    Here {
        /// `server.api_listen`
        api: SocketAddr,
        /// `server.headscale_listen`
        headscale: SocketAddr,
    },
}

/// How far joining has come. Each step needs those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Waits for the identity and the instance id.
    #[default]
    Identity,
    /// Asks the server for a key.
    Register,
    /// Waits for tailscaled.
    Tailscaled,
    /// `tailscale up`
    Up,
    /// Waits for an address and a name in the VPN.
    Address,
    /// Tells the server under which type it is found.
    Announce,
    /// In the VPN, and announced where it has a type.
    Joined,
}

impl Step {
    /// What is waited for, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Identity => "waiting for the identity of this machine",
            Self::Register => "registering with the VPC server",
            Self::Tailscaled => "waiting for tailscaled",
            Self::Up => "joining the VPN",
            Self::Address => "waiting for an address in the VPN",
            Self::Announce => "in the VPN, being announced",
            Self::Joined => "in the VPN",
        }
    }
}

/// The node as `status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub step: Step,
    pub since: Option<Timestamp>,
    /// Why the step has not ended, as an operator should read it.
    pub problem: Option<String>,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    pub address: Option<Ipv4Addr>,
    /// E.g. `db-1.dstack.internal`.
    pub dns_name: Option<String>,
    /// When the server last heard of us.
    pub announced: Option<Timestamp>,
    pub peers: Vec<Peer>,
    /// How long each step of the last joining took.
    pub took: Vec<Took>,
}

impl NodeStatus {
    /// In the VPN, with an address; it may still have to be announced.
    pub fn in_vpn(&self) -> bool {
        self.step >= Step::Announce
    }
}

/// Another machine in the VPN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub address: Option<Ipv4Addr>,
    pub online: bool,
    pub path: Path,
}

/// How packets get to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// No packets have gone there lately.
    Idle,
    /// To this address and port.
    Direct(String),
    /// Through this relay.
    Relayed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    pub step: Step,
    pub ms: u64,
}
