//! tailscaled, through its LocalAPI (plain HTTP on its socket) for what is, and through Tailscale's own command line
//! for what is to be.
//!
//! The names of fields are those of `ipn/ipnstate.Status` and `ipn.Prefs` in Tailscale's sources.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::view::View;
use crate::http;
use crate::words;

/// tailscaled answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// A status has about 1 KB for each peer.
const LONGEST_ANSWER: usize = 256 << 20;

/// What `tailscale up` may take until the machine is in the VPN.
const LOGIN: Duration = Duration::from_secs(30);

/// Why tailscaled could not be seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unseen {
    #[error("tailscaled does not answer on {}; what it wrote to its log says why, when this lasts", .0.display())]
    Away(PathBuf),
    #[error("tailscaled does not answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("tailscaled's answer cannot be used: {0}")]
    Garbled(String),
}

/// Why `tailscale` did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("{} cannot be started: {source}", program.display())]
    NotStarted {
        program: PathBuf,
        source: std::io::Error,
    },
    /// The control server was asked, and said no.
    #[error("the VPN does not let this node in: {0}")]
    Refused(String),
    #[error("`tailscale {command}` failed: {words}")]
    Failed { command: &'static str, words: String },
    #[error("`tailscale {command}` did not end within {} s", after.as_secs())]
    Slow { command: &'static str, after: Duration },
}

/// What tailscaled is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Up {
    pub(super) login_server: String,
    pub(super) hostname: String,
    pub(super) accept_dns: bool,
    pub(super) accept_routes: bool,
}

impl Up {
    fn flags(&self) -> [String; 3] {
        [
            format!("--hostname={}", self.hostname),
            format!("--accept-dns={}", self.accept_dns),
            format!("--accept-routes={}", self.accept_routes),
        ]
    }
}

/// One tailscaled and the command that talks to it.
#[derive(Debug, Clone)]
pub(super) struct Tailscale {
    pub(super) program: PathBuf,
    pub(super) socket: PathBuf,
}

impl Tailscale {
    /// What is now; `peers` costs more the more there are.
    pub(super) async fn look(&self, peers: bool) -> Result<View, Unseen> {
        let status = self.get(&format!("/localapi/v0/status?peers={peers}")).await?;
        let prefs = self.get("/localapi/v0/prefs").await?;
        View::read(status, &prefs).map_err(|error| Unseen::Garbled(error.to_string()))
    }

    async fn get(&self, path: &str) -> Result<Bytes, Unseen> {
        let request = Request::builder()
            .uri(path)
            .header(HOST, "local-tailscaled.sock")
            .body(Full::default())
            .map_err(|error| Unseen::Garbled(error.to_string()))?;
        let exchange = async {
            let io = UnixStream::connect(&self.socket)
                .await
                .map_err(|_| Unseen::Away(self.socket.clone()))?;
            http::exchange(io, request, LONGEST_ANSWER)
                .await
                .map_err(|error| Unseen::Garbled(error.to_string()))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok((StatusCode::OK, body))) => Ok(body),
            Ok(Ok((status, body))) => Err(Unseen::Garbled(format!("{status}: {}", words::told(&body)))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Unseen::Slow),
        }
    }

    /// `tailscale up`: with a key it logs in anew. Returns when the machine is in the VPN.
    ///
    /// Dropping the future ends the command, not what tailscaled has begun.
    pub(super) async fn up(&self, up: &Up, key: Option<&Path>) -> Result<(), CommandError> {
        let mut command = self.command("up");
        command
            .arg("--reset")
            .arg(format!("--login-server={}", up.login_server))
            .args(up.flags())
            .arg(format!("--timeout={}s", LOGIN.as_secs()));
        if let Some(key) = key {
            let mut file = std::ffi::OsString::from("--auth-key=file:");
            file.push(key);
            // Also where the machine believes to be logged in: the server knows better, or it is another server.
            command.arg("--force-reauth").arg(file);
        }
        self.run("up", command, LOGIN + PATIENCE).await
    }

    /// Changes what differs on a machine that is in the VPN, and stays there meanwhile.
    pub(super) async fn set(&self, up: &Up) -> Result<(), CommandError> {
        let mut command = self.command("set");
        command.args(up.flags());
        self.run("set", command, PATIENCE).await
    }

    /// Neither looks for new versions nor installs them, whatever the control server proposes.
    pub(super) async fn forbid_updates(&self) -> Result<(), CommandError> {
        let mut command = self.command("set");
        command.args(["--update-check=false", "--auto-update=false"]);
        self.run("set", command, PATIENCE).await
    }

    fn command(&self, name: &'static str) -> Command {
        let mut socket = std::ffi::OsString::from("--socket=");
        socket.push(&self.socket);
        let mut command = Command::new(&self.program);
        command.arg(socket).arg(name);
        command
    }

    async fn run(
        &self,
        name: &'static str,
        mut command: Command,
        limit: Duration,
    ) -> Result<(), CommandError> {
        let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(limit, running)
            .await
            .map_err(|_| CommandError::Slow {
                command: name,
                after: limit,
            })?
            .map_err(|source| CommandError::NotStarted {
                program: self.program.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let words = words::quoted(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
        Err(match words.strip_prefix("backend error: ") {
            Some(words) => CommandError::Refused(words.to_owned()),
            None => CommandError::Failed { command: name, words },
        })
    }
}
