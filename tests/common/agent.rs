//! The stand-in guest agent as a process of its own, one socket for each app.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dstack_vpc::agent::dev::{Issued, LeafRequest, Pki};
use dstack_vpc::names::AppId;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::{CLIENT_APP, OTHER_APP, SERVER_APP, http, poll, process};

/// `dstack-vpc dev-agent` for [`CLIENT_APP`], [`SERVER_APP`] and [`OTHER_APP`], all under one root.
pub struct Agent {
    dir: TempDir,
    child: Child,
    _watchdog: process::Watchdog,
    pki: Pki,
}

impl Agent {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vpc-agent-")
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        let child = spawn(dir.path());
        let agent = Self {
            _watchdog: process::Watchdog::over(child.id()),
            child,
            pki: Pki::load_or_create(dir.path()).expect("the agent's root"),
            dir,
        };
        agent.until_it_answers().await;
        agent
    }

    /// The socket that speaks for `app`.
    pub fn socket(&self, app: &str) -> PathBuf {
        socket(self.dir.path(), app)
    }

    /// A client certificate of `app`, as its own machine would hold one.
    pub fn issue(&self, app: &str) -> Issued {
        self.issue_as(app, &LeafRequest::both())
    }

    pub fn issue_as(&self, app: &str, request: &LeafRequest) -> Issued {
        let app: AppId = app.parse().expect("an app id");
        self.pki.issue(&app, request).expect("a certificate")
    }

    /// Stops the process; the sockets stay behind, stale, as when a real agent dies.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same sockets, under the same root.
    pub async fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.dir.path());
        self._watchdog = process::Watchdog::over(self.child.id());
        self.until_it_answers().await;
    }

    async fn until_it_answers(&self) {
        let socket = self.socket(CLIENT_APP);
        let answers = poll(Duration::from_secs(20), async || {
            let stream = UnixStream::connect(&socket).await.ok()?;
            let reply = http::send_on(stream, http::get("/Info")).await.ok()?;
            (reply.status == 200).then_some(())
        });
        let Some(()) = answers.await else {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            panic!("the dev agent does not answer:\n{log}");
        };
        for app in [CLIENT_APP, SERVER_APP, OTHER_APP] {
            // Machines that run as another user talk to it, too.
            std::fs::set_permissions(self.socket(app), PermissionsExt::from_mode(0o666)).expect("chmod");
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

fn socket(dir: &Path, app: &str) -> PathBuf {
    dir.join(format!("{}.sock", &app[..8]))
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(super::binary());
    command.arg("dev-agent").arg("--root-dir").arg(dir);
    for app in [CLIENT_APP, SERVER_APP, OTHER_APP] {
        let socket = socket(dir, app);
        command
            .arg("--listen")
            .arg(format!("unix:{}={app}", socket.display()));
    }
    let log = File::create(dir.join("log")).expect("a log file");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log file"))
        .stderr(log)
        .spawn()
        .expect("the dstack-vpc binary")
}
