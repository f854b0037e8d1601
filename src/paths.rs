//! The state directory: the one place this program writes to.

use std::path::{Path, PathBuf};

/// Names of everything below the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// `root` should be absolute: the rendered files name paths below it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Complete rendered configurations, one folder each, never edited after.
    pub fn generations(&self) -> PathBuf {
        self.0.join("generations")
    }

    /// The link to the generation that is live.
    pub fn current(&self) -> PathBuf {
        self.0.join("current")
    }

    /// TLS keys and chains, one numbered folder for each certificate.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    pub fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    pub fn headscale(&self) -> PathBuf {
        self.0.join("headscale")
    }

    /// The embedded store of nodes.
    pub fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }

    pub fn tailscale(&self) -> PathBuf {
        self.0.join("tailscale")
    }

    /// What `http_listen` serves to local apps.
    pub fn vpc(&self) -> PathBuf {
        self.0.join("vpc/0")
    }

    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The daemon's own socket: status, apply, renew.
    pub fn daemon_socket(&self) -> PathBuf {
        self.run().join("daemon.sock")
    }

    /// tailscaled's LocalAPI.
    pub fn tailscale_socket(&self) -> PathBuf {
        self.run().join("tailscaled.sock")
    }

    /// supervisord's XML-RPC socket.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }
}
