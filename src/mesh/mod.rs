//! The data plane: the outbound proxy and the auth service for inbound requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::names::BackendName;
use crate::spec::{AgentAddr, AllowedApps, Gateway};

/// Everything the listeners need besides the identity. Equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshSettings {
    pub client_listen: SocketAddr,
    pub auth_listen: SocketAddr,
    /// `None`: not known yet; calls to other apps answer 502 `gateway_unknown`.
    pub gateway: Option<Gateway>,
    /// `None`: no guest agent found yet.
    pub agent: Option<AgentAddr>,
    /// Who may call each backend.
    pub backends: BTreeMap<BackendName, AllowedApps>,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub agent_timeout: Duration,
}
