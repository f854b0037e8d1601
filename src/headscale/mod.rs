//! Headscale as this program uses it: one small client for its REST interface, and the keeper of what has to be there
//! before it can be used: the user `default` and an API key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach the Headscale of this machine. Equal access means nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its command line, which makes API keys over its own socket.
    pub program: PathBuf,
    /// The configuration that it runs on, below `<state>/current`.
    pub config: PathBuf,
    /// `server.headscale_listen`; an unspecified address is reached on loopback.
    pub listen: SocketAddr,
    /// Where the API key is kept, 0600.
    pub key_file: PathBuf,
    /// `headscale.api_key_lifetime`
    pub key_lifetime: Duration,
}
