//! A real Headscale on what is rendered for it, in a temporary directory and on a free port.
#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dstack_vpc::facts::{DerpMap, Version};
use dstack_vpc::headscale::Access;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{Role, Spec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::common::ports::Port;
use super::common::process::Watchdog;
use super::common::{http, poll};
use super::rendered;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program of `$HEADSCALE`, else the one on `PATH`.
pub fn program() -> PathBuf {
    match std::env::var_os("HEADSCALE") {
        Some(path) => path.into(),
        None => rendered::program("headscale"),
    }
}

/// Its version, as `headscale version` tells it.
pub fn version() -> Version {
    let output = Command::new(program())
        .arg("version")
        .output()
        .expect("headscale");
    Version::find(&String::from_utf8_lossy(&output.stdout)).unwrap_or_default()
}

pub struct Place {
    dir: TempDir,
    port: Port,
    pub spec: Spec,
    pub derp_map: Option<Arc<DerpMap>>,
    running: Option<(Child, Watchdog)>,
}

impl Place {
    /// Nothing runs yet.
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut Spec)) -> Self {
        let port = Port::reserve();
        let mut spec = Spec {
            role: Role {
                server: true,
                node: false,
            },
            ..Spec::default()
        };
        spec.server.headscale_listen = port.addr();
        let url = format!("\"http://127.0.0.1:{}\"", port.number());
        spec.server.url = dstack_vpc::spec::ServerUrl::Is(url.trim_matches('"').parse().expect("a URL"));
        change(&mut spec);
        let place = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            port,
            spec,
            derp_map: None,
            running: None,
        };
        place.write();
        place
    }

    /// With Headscale serving.
    pub async fn running() -> Self {
        let mut place = Self::new();
        place.start().await;
        place
    }

    pub fn state(&self) -> StateDir {
        StateDir::new(self.dir.path())
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub fn access(&self) -> Access {
        Access {
            program: program(),
            config: self.config(),
            listen: self.addr(),
            key_file: self.state().secrets().join("headscale_api_key"),
            key_lifetime: self.spec.headscale.api_key_lifetime,
        }
    }

    pub fn key(&self) -> String {
        let key = std::fs::read_to_string(self.access().key_file).unwrap_or_default();
        key.trim().to_owned()
    }

    fn config(&self) -> PathBuf {
        self.state().current().join("headscale/headscale.yaml")
    }

    /// Renders the files as apply would.
    pub fn write(&self) {
        let state = self.state();
        let mut facts = rendered::facts(&state);
        if let Some(headscale) = &mut facts.programs.headscale {
            headscale.value.version = version();
        }
        facts.derp_map = self.derp_map.clone().map(rendered::fact);
        let desired = rendered::render(&self.spec, &facts, &state).expect("rendered");
        rendered::write(&desired, &state.current());
        for folder in desired.folders.keys() {
            std::fs::create_dir_all(folder).expect("a folder");
        }
    }

    pub async fn start(&mut self) {
        self.spawn();
        let serves = poll(PATIENCE, async || {
            let reply = http::send(self.addr(), http::get("/health")).await.ok()?;
            (reply.status == 200).then_some(())
        });
        if serves.await.is_none() {
            panic!("headscale does not serve:\n{}", self.log());
        }
    }

    fn spawn(&mut self) {
        self.stop();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let child = Command::new(program())
            .args(["serve", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("headscale");
        let watchdog = Watchdog::over(child.id());
        self.running = Some((child, watchdog));
    }

    pub fn signal(&self, signal: Signal) {
        let (child, _) = self.running.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), signal).expect("our own child");
    }

    pub fn stop(&mut self) {
        if let Some((mut child, _watchdog)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As after the loss of the disk.
    pub fn wipe_database(&self) {
        for entry in std::fs::read_dir(self.state().headscale()).expect("its folder") {
            let path = entry.expect("an entry").path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("db.sqlite"))
            {
                std::fs::remove_file(path).expect("removed");
            }
        }
    }

    /// Headscale's own command line, and its JSON.
    pub fn cli(&self, args: &[&str]) -> serde_json::Value {
        let output = Command::new(program())
            .arg("--config")
            .arg(self.config())
            .args(args)
            .args(["--output", "json"])
            .output()
            .expect("headscale");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{args:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// How many API keys Headscale knows.
    pub fn api_keys(&self) -> usize {
        self.cli(&["apikeys", "list"]).as_array().map_or(0, Vec::len)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("headscale.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop();
    }
}
