//! What tailscaled says of itself, read into what matters here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use serde::Deserialize;

use super::{Path, Peer};
use crate::names::DnsName;
use crate::words;

/// tailscaled at one moment.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) backend: Backend,
    /// It has been logged in once, and may still be.
    pub(super) has_node_key: bool,
    /// The control server is in touch.
    pub(super) online: bool,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) dns_name: Option<DnsName>,
    /// Its own complaints.
    pub(super) health: Vec<String>,
    pub(super) peers: Vec<Peer>,
    pub(super) prefs: Prefs,
    /// As `tailscale status --json` prints it.
    pub(super) json: Bytes,
}

/// `ipn.State`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Backend {
    /// Just started, or the control server has not answered yet.
    NoState,
    InUseOtherUser,
    /// It has no key, or one that the control server does not know, or that has expired.
    NeedsLogin,
    /// An operator of the server has to say yes.
    NeedsMachineAuth,
    Stopped,
    /// It knows its peers, and has no path to any yet.
    Starting,
    Running,
    #[serde(other)]
    Unknown,
}

/// `ipn.Prefs`, as far as they are ours to set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Prefs {
    #[serde(rename = "ControlURL")]
    pub(super) login_server: String,
    #[serde(rename = "RouteAll")]
    pub(super) accept_routes: bool,
    #[serde(rename = "CorpDNS")]
    pub(super) accept_dns: bool,
    pub(super) want_running: bool,
    pub(super) hostname: String,
    #[serde(default)]
    auto_update: AutoUpdate,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct AutoUpdate {
    check: bool,
    /// `None`: as the control server likes.
    apply: Option<bool>,
}

impl Prefs {
    /// It neither looks for new versions nor installs them.
    pub(super) fn no_updates(&self) -> bool {
        !self.auto_update.check && self.auto_update.apply == Some(false)
    }
}

/// `ipnstate.Status`
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    backend_state: Backend,
    #[serde(default)]
    have_node_key: bool,
    #[serde(rename = "Self")]
    own: PeerStatus,
    health: Option<Vec<String>>,
    peer: Option<BTreeMap<String, PeerStatus>>,
}

/// `ipnstate.PeerStatus`
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PeerStatus {
    #[serde(rename = "DNSName")]
    dns_name: String,
    host_name: String,
    #[serde(rename = "TailscaleIPs")]
    ips: Option<Vec<std::net::IpAddr>>,
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Option<Vec<String>>,
    #[serde(default)]
    cur_addr: String,
    #[serde(default)]
    relay: String,
    #[serde(default)]
    peer_relay: String,
    #[serde(default)]
    online: bool,
    #[serde(default)]
    active: bool,
}

impl View {
    /// Reads the answers to `status` and to `prefs`.
    pub(super) fn read(status: Bytes, prefs: &[u8]) -> Result<Self, serde_json::Error> {
        let Status {
            backend_state,
            have_node_key,
            own,
            health,
            peer,
        } = serde_json::from_slice(&status)?;
        let mut peers: Vec<Peer> = peer.into_iter().flatten().map(|(_, peer)| peer.into()).collect();
        peers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            backend: backend_state,
            has_node_key: have_node_key,
            online: own.online,
            address: own.address(),
            dns_name: own.dns_name(),
            health: health
                .iter()
                .flatten()
                .map(|words| words::quoted(words))
                .collect(),
            peers,
            prefs: serde_json::from_slice(prefs)?,
            json: status,
        })
    }

    /// It has a key that nobody has declared void, for this control server.
    pub(super) fn is_logged_in(&self, login_server: &str) -> bool {
        let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
        self.has_node_key
            && self.backend != Backend::NeedsLogin
            && same(&self.prefs.login_server, login_server)
    }

    /// Packets can travel.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.backend, Backend::Starting | Backend::Running) && self.address.is_some()
    }

    /// Why it is not up, in its own words where it has some.
    pub(super) fn trouble(&self) -> Option<String> {
        const LOGIN_ERROR: &str = "You are logged out. The last login error was: ";
        let words = self
            .health
            .iter()
            .find_map(|words| words.strip_prefix(LOGIN_ERROR));
        words.map(str::to_owned).or_else(|| self.health.first().cloned())
    }
}

impl PeerStatus {
    /// Outside of [`SHARED_SPACE`](crate::names::SHARED_SPACE) only the routes tell.
    fn address(&self) -> Option<Ipv4Addr> {
        let own = self.ips.iter().flatten().find_map(|ip| match ip {
            std::net::IpAddr::V4(ip) => Some(*ip),
            std::net::IpAddr::V6(_) => None,
        });
        let routed = || {
            let routes = self.allowed_ips.iter().flatten();
            routes
                .filter_map(|route| route.strip_suffix("/32"))
                .find_map(|ip| ip.parse().ok())
        };
        own.or_else(routed)
    }

    fn dns_name(&self) -> Option<DnsName> {
        let name = &self.dns_name;
        name.strip_suffix('.').unwrap_or(name).parse().ok()
    }
}

impl From<PeerStatus> for Peer {
    fn from(peer: PeerStatus) -> Self {
        let path = match &peer {
            PeerStatus { cur_addr, .. } if !cur_addr.is_empty() => Path::Direct(cur_addr.clone()),
            PeerStatus { active: false, .. } => Path::Idle,
            PeerStatus { peer_relay, .. } if !peer_relay.is_empty() => Path::Relayed(peer_relay.clone()),
            PeerStatus { relay, .. } if !relay.is_empty() => Path::Relayed(relay.clone()),
            _ => Path::Idle,
        };
        Peer {
            address: peer.address(),
            online: peer.online,
            path,
            // The given name: host names need not be unique.
            name: match peer
                .dns_name()
                .as_ref()
                .map(|name| name.as_str().split('.').next())
            {
                Some(Some(label)) => label.to_owned(),
                // Each machine chooses its own.
                _ => words::quoted(&peer.host_name),
            },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What tailscaled 1.102.5 says in a VPN of 100.128.0.0/10, shortened.
    pub(in crate::node) fn status(backend: &str) -> Value {
        json!({
            "Version": "1.102.5", "TUN": false, "BackendState": backend, "HaveNodeKey": true, "AuthURL": "",
            "TailscaleIPs": ["100.128.0.1"],
            "Self": {
                "HostName": "db-1", "DNSName": "db-1.dstack.internal.", "TailscaleIPs": ["100.128.0.1"],
                "AllowedIPs": ["100.128.0.1/32"], "CurAddr": "", "Relay": "vpc", "Online": true, "Active": false,
            },
            "Health": [], "Peer": null,
        })
    }

    pub(in crate::node) fn prefs(login_server: &str) -> Value {
        json!({
            "ControlURL": login_server, "RouteAll": true, "CorpDNS": true, "WantRunning": true,
            "Hostname": "db-1", "AutoUpdate": {"Check": true, "Apply": null}, "NetfilterMode": 2,
        })
    }

    pub(in crate::node) fn view(status: &Value, prefs: &Value) -> View {
        View::read(status.to_string().into(), prefs.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn peers_have_addresses_outside_of_the_shared_space_and_paths() {
        let mut status = status("Running");
        let peer = |name: &str, more: Value| {
            let mut peer = json!({
                "HostName": "ignored", "DNSName": format!("{name}.dstack.internal."), "TailscaleIPs": [],
                "AllowedIPs": ["10.0.0.0/8", "100.128.0.9/32"], "CurAddr": "", "Relay": "", "Online": true,
            });
            peer.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            peer
        };
        status["Peer"] = json!({
            "nodekey:4": peer("d", json!({"AllowedIPs": null, "Online": false, "Relay": "vpc", "Active": true})),
            "nodekey:1": peer("a", json!({"CurAddr": "192.0.2.7:41641", "Relay": "vpc", "Active": true})),
            "nodekey:2": peer("b", json!({"Relay": "vpc", "TailscaleIPs": ["fd7a::1", "100.64.0.3"]})),
            "nodekey:3": peer("c", json!({"Relay": "vpc", "PeerRelay": "192.0.2.8:7", "Active": true})),
            "nodekey:5": peer("", json!({"DNSName": ""})),
        });
        let peers = view(&status, &prefs("https://h")).peers;
        let address = Some(Ipv4Addr::new(100, 128, 0, 9));
        let found: Vec<_> = peers
            .iter()
            .map(|peer| (peer.name.as_str(), peer.address, peer.online, peer.path.clone()))
            .collect();
        assert_eq!(
            found,
            [
                ("a", address, true, Path::Direct("192.0.2.7:41641".into())),
                ("b", Some(Ipv4Addr::new(100, 64, 0, 3)), true, Path::Idle),
                ("c", address, true, Path::Relayed("192.0.2.8:7".into())),
                ("d", None, false, Path::Relayed("vpc".into())),
                ("ignored", address, true, Path::Idle),
            ]
        );
    }

    #[test]
    fn what_a_fresh_tailscaled_says_is_understood() {
        let fresh = json!({
            "Version": "1.102.5", "BackendState": "NeedsLogin", "TailscaleIPs": null,
            "Self": {"HostName": "vm", "DNSName": "", "TailscaleIPs": null, "Addrs": [], "Online": false},
            "Health": ["You are logged out. The last login error was: fetch control key: refused"],
            "Peer": null, "User": null,
        });
        let view = view(&fresh, &prefs("https://controlplane.tailscale.com"));
        assert!(!view.has_node_key && !view.is_up() && view.peers.is_empty());
        assert_eq!((view.address, view.dns_name.clone()), (None, None));
        assert_eq!(view.trouble().as_deref(), Some("fetch control key: refused"));
        assert!(!view.prefs.no_updates());
        assert!(View::read("{}".into(), b"{}").is_err());

        let later = super::tests::view(&status("SomethingNew"), &prefs("https://h/"));
        assert_eq!(later.backend, Backend::Unknown);
        assert!(later.is_logged_in("https://h") && !later.is_logged_in("https://i"));
    }
}
