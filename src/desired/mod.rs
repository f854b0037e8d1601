//! What the machine should look like: a pure function of the spec and the facts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::mesh::MeshSettings;

/// The programs supervisord runs beside the daemon; the names are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    Daemon,
    Nginx,
    Headscale,
    Tailscaled,
}

impl Program {
    /// The name in supervisord.
    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon => "dstack-vpc",
            Self::Nginx => "nginx",
            Self::Headscale => "headscale",
            Self::Tailscaled => "tailscaled",
        }
    }
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// By path below the generation's folder, e.g. `nginx/nginx.conf`.
    pub files: BTreeMap<String, File>,
    /// Supervised programs other than the daemon; each runs with exactly these words.
    pub programs: BTreeMap<Program, Command>,
    /// Settings of the built-in listeners: they change in place.
    pub mesh: MeshSettings,
    /// Names the content of `files`: the same content has the same tag. It stands in nginx.conf and is probed.
    pub tag: String,
    /// How to see that this generation serves.
    pub probes: Vec<Probe>,
    /// What is left out and why, as a person should read it.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub mode: u32,
    pub bytes: Vec<u8>,
    /// Whose file it is: who checks it and who must hear of a change.
    pub reader: Reader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// This program: `vpc.toml`, the effective settings, from which a restart finds the last good ones.
    Daemon,
    Nginx,
    Headscale,
    Supervisord,
}

impl Reader {
    /// Whose file a path below a generation's folder is: the first folder says so.
    pub fn of(path: &str) -> Self {
        match path.split('/').next() {
            Some("nginx") => Self::Nginx,
            Some("headscale") => Self::Headscale,
            Some("supervisor") => Self::Supervisord,
            _ => Self::Daemon,
        }
    }
}

/// A program and its arguments, no shell anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub argv: Vec<String>,
}

/// `GET /.dstack-vpc/generation` on a listener answers with the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The key that set the listener, e.g. `mesh.https_listen`.
    pub key: &'static str,
    /// As configured; an unspecified address is probed on loopback.
    pub listen: SocketAddr,
    pub tls: bool,
}
