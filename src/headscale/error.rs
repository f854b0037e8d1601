//! Why Headscale did not do it, in words for an operator.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum HeadscaleError {
    /// This machine is no server, or Headscale cannot run on it yet.
    #[error("Headscale does not run on this machine")]
    NotHere,
    /// What the keeper is busy with.
    #[error("Headscale cannot be used yet: {0}")]
    NotReady(String),
    #[error("this program is stopping")]
    Closing,
    /// Nobody listens, or the connection broke off.
    #[error("Headscale does not answer on {listen} ({why}). It is starting, or its log says why it does not")]
    Down { listen: SocketAddr, why: String },
    #[error("Headscale took longer than {}s to {doing}", after.as_secs())]
    Timeout { doing: &'static str, after: Duration },
    /// 401: the key was revoked, has expired, or belongs to a database that is gone.
    #[error("Headscale does not accept the API key any more")]
    Unauthorized,
    /// A key that Headscale's command line has just made.
    #[error(
        "what listens on {listen} does not accept the API key that `{} apikeys create` has just made. Is another \
         program on that port?", program.display()
    )]
    Stranger { listen: SocketAddr, program: PathBuf },
    /// Headscale said no, in its own words.
    #[error("Headscale refused to {doing}: {message} (status {status})")]
    Refused {
        doing: &'static str,
        status: u16,
        message: String,
    },
    /// The answer is not what Headscale answers.
    #[error("the answer on {listen} is not Headscale's: {why} (asked to {doing})")]
    Malformed {
        listen: SocketAddr,
        doing: &'static str,
        why: String,
    },
    /// Its command line could not be run, or failed.
    #[error("`{} apikeys create` failed: {why}", program.display())]
    Command { program: PathBuf, why: String },
    #[error("cannot keep Headscale's API key in {}: {source}", path.display())]
    KeyFile { path: PathBuf, source: io::Error },
}

impl HeadscaleError {
    /// Headscale is away for a moment, or the session has to be made anew.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Unauthorized)
    }

    /// Headscale's own failure: the user, for one, is gone when its database was replaced.
    pub(super) fn is_internal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status >= 500)
    }

    /// What was asked for is not there. Not all versions say so by the status.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, message, .. } if *status == 404 || message.contains("not found"))
    }
}
