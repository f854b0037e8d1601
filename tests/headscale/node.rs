//! A real tailscaled in userspace: no device, no root.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dstack_vpc::headscale::Secret;
use serde_json::Value;
use tempfile::TempDir;

use super::common::poll;
use super::common::process::Watchdog;
use super::place::PATIENCE;
use super::rendered::program;

pub struct Node {
    name: &'static str,
    login_server: String,
    dir: TempDir,
    child: Child,
    _watchdog: Watchdog,
}

impl Node {
    /// With an empty state, and not logged in.
    pub async fn start(name: &'static str, login_server: String) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new(program("tailscaled"))
            .args(["--tun=userspace-networking", "--port=0", "--no-logs-no-support"])
            .arg(format!("--statedir={}", dir.path().display()))
            .arg(format!("--socket={}", dir.path().join("sock").display()))
            .env("TS_LOGS_DIR", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tailscaled");
        let node = Self {
            name,
            login_server,
            _watchdog: Watchdog::over(child.id()),
            child,
            dir,
        };
        let there = poll(PATIENCE, async || node.path("sock").exists().then_some(()));
        there.await.expect("tailscaled's socket");
        node
    }

    /// `tailscale up`, and what it said when it failed.
    pub fn join(&self, key: &Secret) -> Result<(), String> {
        std::fs::write(self.path("key"), key.expose()).expect("the key's file");
        let output = self.tailscale(&[
            "up",
            "--timeout=20s",
            &format!("--login-server={}", self.login_server),
            &format!("--auth-key=file:{}", self.path("key").display()),
            &format!("--hostname={}", self.name),
            "--accept-routes",
        ]);
        match output.0 {
            true => Ok(()),
            false => Err(output.1),
        }
    }

    /// Its name and address once the network says so: `(db-1.dstack.internal., 100.128.0.1)`.
    pub fn itself(&self) -> (String, String) {
        let me = self.status()["Self"].take();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&me["DNSName"]), text(&me["TailscaleIPs"][0]))
    }

    /// The code of the relay that it is reached through.
    pub async fn relay(&self) -> Option<String> {
        let relay = async || {
            let relay = self.status()["Self"]["Relay"].as_str()?.to_owned();
            (!relay.is_empty()).then_some(relay)
        };
        poll(Duration::from_secs(20), relay).await
    }

    /// The regions of the relays that the server told it of.
    pub async fn regions(&self) -> Vec<String> {
        let map = async || {
            let map = std::fs::read(self.path("derpmap.cached.json")).ok()?;
            serde_json::from_slice::<Value>(&map).ok()
        };
        let map = poll(PATIENCE, map).await.unwrap_or_default();
        let regions = map["Regions"].as_object().map(|it| it.keys().cloned().collect());
        regions.unwrap_or_default()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.tailscale(&["status", "--json"]).1).unwrap_or_default()
    }

    /// Whether it ended well, and what it printed.
    pub fn tailscale(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(program("tailscale"))
            .arg(format!("--socket={}", self.path("sock").display()))
            .args(args)
            .output()
            .expect("tailscale");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
