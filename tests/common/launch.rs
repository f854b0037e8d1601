//! How `up` is started, the first time and every other.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::netns::Namespace;

/// One machine's `up`.
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) user: Option<&'static str>,
    pub(super) host: Option<Arc<Namespace>>,
    pub(super) env: Vec<(String, String)>,
    pub(super) state: PathBuf,
    pub(super) config: PathBuf,
    pub(super) contained: bool,
    pub(super) log: PathBuf,
}

impl Launch {
    pub(super) fn spawn(&self) -> Child {
        // Appending, like the journal of a container: many processes write to it.
        let log = File::options()
            .append(true)
            .open(&self.log)
            .expect("the log file");
        let mut command = match self.user {
            None => self.command(&self.program),
            Some(user) => {
                let mut command = self.command("setpriv");
                command.args(["--reuid", user, "--regid", "nogroup", "--clear-groups"]);
                command.arg(&self.program);
                command
            }
        };
        self.settings(&mut command);
        command
            .arg("up")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn()
            .expect("the dstack-vpc binary")
    }

    /// Where its settings and its state are.
    pub(super) fn settings(&self, command: &mut Command) {
        match self.contained {
            true => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                command.env_clear().env("PATH", path);
                command.envs(self.env.iter().map(|(name, value)| (name, value)));
            }
            false => {
                command.args(["--config".as_ref(), self.config.as_os_str()]);
            }
        }
        command.args(["--state-dir".as_ref(), self.state.as_os_str()]);
    }

    /// `program` where the machine is. It becomes that program by exec: its pid is that of the child.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.host {
            None => Command::new(program),
            Some(host) => host.command(program),
        }
    }

    pub(super) async fn connect(&self, addr: SocketAddr) -> std::io::Result<TcpStream> {
        match &self.host {
            None => TcpStream::connect(addr).await,
            Some(host) => host.connect(addr).await,
        }
    }
}
