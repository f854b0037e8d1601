//! What the server gave: `<state>/secrets/membership.json`, and the key to join with until it is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::files::{self, FileError, Readers};
use super::server::Welcome;
use crate::identity::make_private_dir;
use crate::names::{AppId, NodeId};
use crate::paths::StateDir;

/// A server may have a new address meanwhile, and keys do not live long.
const KEY_STAYS_FRESH: Duration = Duration::from_secs(5 * 60);

/// That this machine is registered, where, and as what. It has no `Debug`: the shared key stays out of logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    /// The app id of the VPC server.
    pub(super) server: AppId,
    /// It is this very machine, and not another one of the same app: that has a VPN of its own.
    #[serde(default)]
    pub(super) here: bool,
    /// What this node calls itself there.
    pub(super) instance_id: NodeId,
    /// Headscale's URL.
    pub(super) server_url: String,
    pub(super) shared_key: String,
}

/// Whether the Headscale of this node's VPN is reached by plain HTTP under a name or a public address, which only a
/// tailscaled does that was not told to insist on TLS.
pub(crate) fn plain_headscale(state: &StateDir) -> bool {
    let credentials = Credentials::load(state);
    let Some(Ok(url)) = credentials.membership().map(|it| Url::parse(&it.server_url)) else {
        return false;
    };
    // What Tailscale takes for near enough: `controlclient.NewNoiseClient`.
    let near = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_private() || ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_unique_local() || ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && !near
}

/// The files that hold it all. Nothing else reads or writes them.
pub(super) struct Credentials {
    folder: PathBuf,
    /// As on disk.
    membership: Option<Membership>,
}

impl Credentials {
    /// What a former life left. A damaged file is none: the server gives everything anew.
    pub(super) fn load(state: &StateDir) -> Self {
        let folder = state.secrets();
        let membership = fs::read(membership_file(&folder))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        Self { folder, membership }
    }

    pub(super) fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// The file of a key that has not been used and is still young.
    pub(super) fn key_file(&self) -> Option<PathBuf> {
        let path = self.key_path();
        let written = fs::metadata(&path).and_then(|about| about.modified()).ok()?;
        let age = SystemTime::now().duration_since(written).unwrap_or_default();
        (age < KEY_STAYS_FRESH).then_some(path)
    }

    /// Keeps what a registration gave.
    pub(super) fn store(
        &mut self,
        server: AppId,
        here: bool,
        instance_id: NodeId,
        new: Welcome,
    ) -> Result<(), FileError> {
        let failed = |source| FileError {
            path: self.folder.clone(),
            source,
        };
        make_private_dir(&self.folder).map_err(failed)?;
        let membership = Membership {
            server,
            here,
            instance_id,
            server_url: new.server_url,
            shared_key: new.shared_key,
        };
        let json = serde_json::to_vec(&membership).map_err(|error| failed(error.into()))?;
        // In this order no key ever lies beside the membership of another server.
        self.drop_key()?;
        files::replace(&membership_file(&self.folder), &json, Readers::Us)?;
        self.membership = Some(membership);
        files::replace(&self.key_path(), new.pre_auth_key.as_bytes(), Readers::Us)
    }

    /// The key is used, refused or not needed.
    pub(super) fn drop_key(&self) -> Result<(), FileError> {
        files::remove_file(&self.key_path())
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join("join_key")
    }
}

fn membership_file(folder: &Path) -> PathBuf {
    folder.join("membership.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_not_insisted_on_where_headscale_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert!(!plain_headscale(&state), "not registered yet");
        for (url, plain) in [
            ("http://vpn.corp.test:8080", true),
            ("http://203.0.113.7:8080", true),
            ("http://10.0.0.1:8080", false),
            ("http://[::1]:8080", false),
            ("http://localhost:8080", false),
            ("https://vpn.example.com", false),
        ] {
            let welcome = Welcome {
                pre_auth_key: "k".to_owned(),
                shared_key: "s".to_owned(),
                server_url: url.to_owned(),
            };
            let app = AppId::from_bytes([7; 20]);
            let mut credentials = Credentials::load(&state);
            credentials.store(app, false, NodeId::random(), welcome).unwrap();
            assert_eq!(plain_headscale(&state), plain, "{url}");
        }
    }
}
