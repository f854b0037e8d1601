//! The VPC API: nodes register, announce themselves and find each other.
//!
//! It owns what a server role needs at run time: its listener, the registry, and the way to Headscale.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::headscale::Access;
use crate::registry::RegistrySettings;
use crate::spec::AllowedApps;

/// Everything the API needs to know. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiSettings {
    /// `server.api_listen`
    pub listen: SocketAddr,
    /// Who may register and ask.
    pub allowed_apps: AllowedApps,
    /// The public URL of Headscale, or why it is not known yet.
    pub server_url: Result<String, String>,
    /// `vpn.prefix`: nodes have their addresses from it.
    pub prefix: Ipv4Net,
    /// `server.join_key_lifetime`
    pub join_key_lifetime: Duration,
    /// `server.join_key_reusable`
    pub join_key_reusable: bool,
    /// `server.requests_per_hour`: of one app; 0 is any number.
    pub requests_per_hour: u32,
    /// `server.registrations_per_hour`: of one app; 0 is any number.
    pub registrations_per_hour: u32,
    pub registry: RegistrySettings,
    /// `None`: Headscale does not run here (yet).
    pub headscale: Option<Access>,
}

/// How the server side of the VPN is, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Why nodes cannot register or be found at the moment; empty: they can.
    pub problems: Vec<String>,
    /// Records in the registry.
    pub nodes: usize,
    /// Of these, how many announced themselves recently.
    pub present: usize,
}
