//! A real etcd of one or more members, each of which can be killed, stopped and started again.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::http;
use super::poll;
use super::ports::Port;
use super::process::Watchdog;

/// For a member to come up, and for the others to elect a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends with this, data and all.
pub struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
}

struct Member {
    client: Port,
    peer: Port,
    running: Option<(Child, Watchdog)>,
}

impl Etcd {
    /// All members run and have a leader when this returns.
    pub async fn start(members: usize) -> Self {
        let member = |_| Member {
            client: Port::reserve(),
            peer: Port::reserve(),
            running: None,
        };
        let mut etcd = Self {
            members: (0..members).map(member).collect(),
            dir: tempfile::tempdir().expect("a folder"),
        };
        for number in 0..members {
            etcd.spawn(number);
        }
        etcd.ready().await;
        etcd
    }

    /// The addresses for clients, as `registry.endpoints` has them.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| format!("http://{}", member.client))
            .collect()
    }

    /// As a crash of its machine: nothing is written any more.
    pub fn kill(&mut self, number: usize) {
        if let Some((mut child, _)) = self.members[number].running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As a machine that hangs: connections stay open and nothing comes.
    pub fn freeze(&self, number: usize) {
        self.signal(number, Signal::SIGSTOP);
    }

    pub fn thaw(&self, number: usize) {
        self.signal(number, Signal::SIGCONT);
    }

    fn signal(&self, number: usize, signal: Signal) {
        if let Some((child, _)) = &self.members[number].running {
            kill(Pid::from_raw(child.id() as i32), signal).expect("our own child");
        }
    }

    /// Starts a member that was killed, with the data it had.
    pub async fn start_again(&mut self, number: usize) {
        self.spawn(number);
        self.ready().await;
    }

    /// The member that leads now.
    pub async fn leader(&self) -> usize {
        let found = poll(PATIENCE, async || {
            for (number, member) in self.members.iter().enumerate() {
                let Ok(reply) =
                    http::send(member.client.addr(), http::post("/v3/maintenance/status", "{}")).await
                else {
                    continue;
                };
                let status = reply.json();
                if status["leader"].is_string() && status["leader"] == status["header"]["member_id"] {
                    return Some(number);
                }
            }
            None
        });
        found.await.expect("etcd has a leader")
    }

    /// One call of the JSON gateway, of a member that runs.
    pub async fn call(&self, method: &str, body: &serde_json::Value) -> serde_json::Value {
        let member = self.members.iter().find(|member| member.running.is_some());
        let at = member.expect("a member that runs").client.addr();
        let reply = http::send(at, http::post(&format!("/v3/{method}"), body.to_string())).await;
        let reply = reply.expect("etcd answers");
        assert_eq!(reply.status, 200, "{method}: {}", reply.text());
        reply.json()
    }

    /// Resident memory of a member, in KiB.
    pub fn resident(&self, number: usize) -> u64 {
        let running = self.members[number].running.as_ref();
        running.map_or(0, |(child, _)| super::process::resident(child.id() as i32))
    }

    async fn ready(&self) {
        let all = poll(PATIENCE, async || {
            for member in self.members.iter().filter(|member| member.running.is_some()) {
                let reply = http::send(member.client.addr(), http::get("/health"))
                    .await
                    .ok()?;
                if !reply.text().contains("true") {
                    return None;
                }
            }
            Some(())
        });
        all.await
            .unwrap_or_else(|| panic!("etcd is not ready; see its log:\n{}", self.log()));
    }

    fn log(&self) -> String {
        let log = |number| std::fs::read_to_string(log_of(self.dir.path(), number)).unwrap_or_default();
        (0..self.members.len()).map(log).collect()
    }

    fn spawn(&mut self, number: usize) {
        let name = |number: usize| format!("m{number}");
        let peers = self.members.iter().enumerate();
        let peers: Vec<_> = peers
            .map(|(number, member)| format!("{}=http://{}", name(number), member.peer))
            .collect();
        let member = &mut self.members[number];
        let (client, peer) = (
            format!("http://{}", member.client),
            format!("http://{}", member.peer),
        );
        let log = File::options()
            .append(true)
            .create(true)
            .open(log_of(self.dir.path(), number))
            .expect("a log");
        let child = Command::new("etcd")
            .args(["--name", &name(number), "--data-dir"])
            .arg(self.dir.path().join(name(number)))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &peers.join(","), "--log-level", "error"])
            .args(["--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("etcd: {e}. Run `make setup`"));
        let watchdog = Watchdog::over(child.id());
        member.running = Some((child, watchdog));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}

fn log_of(dir: &Path, number: usize) -> std::path::PathBuf {
    dir.join(format!("m{number}.log"))
}
