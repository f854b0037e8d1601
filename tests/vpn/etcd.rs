//! A cluster of etcd, each member a process of its own at the switch.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::http::{self, post};
use crate::common::netns::Switch;
use crate::common::process::Watchdog;
use crate::vpc::until;

const CLIENTS: [u16; 3] = [2379, 2381, 2383];

pub(crate) struct Etcd<'a> {
    switch: &'a Switch,
    members: Vec<(u16, Child, Watchdog)>,
    _dir: TempDir,
}

impl<'a> Etcd<'a> {
    /// Three members that have elected a leader.
    pub(crate) async fn start(switch: &'a Switch) -> Self {
        let dir = tempfile::Builder::new().prefix("vpc-etcd-").tempdir();
        let dir = dir.expect("a temporary directory");
        let url = |port: u16| format!("http://{}:{port}", Switch::ADDRESS);
        let cluster = CLIENTS
            .map(|port| format!("etcd-{port}={}", url(port + 1)))
            .join(",");
        let members = CLIENTS.map(|port| {
            let name = format!("etcd-{port}");
            let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).expect("a log file");
            let child = switch
                .inside()
                .command("etcd")
                .args(["--name", &name, "--initial-cluster", &cluster])
                .arg(format!("--data-dir={}/{name}", dir.path().display()))
                .args([
                    "--listen-client-urls",
                    &url(port),
                    "--advertise-client-urls",
                    &url(port),
                ])
                .args(["--listen-peer-urls", &url(port + 1)])
                .args(["--initial-advertise-peer-urls", &url(port + 1)])
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log file"))
                .stderr(log)
                .spawn()
                .expect("nsenter");
            let watchdog = Watchdog::over(child.id());
            (port, child, watchdog)
        });
        let etcd = Self {
            switch,
            members: members.into(),
            _dir: dir,
        };
        etcd.leader().await;
        etcd
    }

    /// As `registry.endpoints` wants them.
    pub(crate) fn endpoints(&self) -> String {
        let urls = CLIENTS.map(|port| format!("http://{}:{port}", Switch::ADDRESS));
        format!("{urls:?}")
    }

    /// With SIGKILL. The others elect another.
    pub(crate) async fn kill_the_leader(&mut self) {
        let port = self.leader().await;
        let (_, member, _) = self
            .members
            .iter_mut()
            .find(|member| member.0 == port)
            .expect("one of ours");
        member.kill().expect("it runs");
        member.wait().expect("it ends");
    }

    /// The client port of the leader.
    async fn leader(&self) -> u16 {
        let found = until(Duration::from_secs(60), "etcd has a leader", async || {
            for (port, ..) in &self.members {
                let Ok(status) = self.status(*port).await else {
                    continue;
                };
                if status["leader"].is_string() && status["leader"] == status["header"]["member_id"] {
                    return Ok(*port);
                }
            }
            Err("none of the members is it; is etcd installed? `make setup` does".to_owned())
        });
        found.await.expect("a leader")
    }

    async fn status(&self, port: u16) -> Result<Value, http::Error> {
        let stream = self
            .switch
            .inside()
            .connect((Switch::ADDRESS, port).into())
            .await?;
        Ok(http::send_on(stream, post("/v3/maintenance/status", "{}"))
            .await?
            .json())
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        for (_, member, _) in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
