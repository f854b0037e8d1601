//! One node with its tailscaled, and the server's side beside it.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dstack_vpc::desired::Program;
use dstack_vpc::names::AppId;
use dstack_vpc::node::{Node, NodeSettings, NodeStatus, Server, Step};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{Role, Spec, Tun};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::common::poll;
use super::common::process::{self, Watchdog};
use super::place::Place;
use super::rendered;

pub const SERVER: &str = "5e44e40000000000000000000000000000000002";
pub const INSTANCE: &str = "1057a0ce00000000000000000000000000000001";
const APP: &str = "c11e000000000000000000000000000000000001";

/// Enough for a loaded machine; nothing waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Site {
    pub headscale: Place,
    pub api: Api,
    home: TempDir,
    settings: watch::Sender<Option<NodeSettings>>,
    node: Option<Node>,
    tailscaled: Option<(Child, Watchdog)>,
}

impl Site {
    /// Headscale and the API serve, nothing else runs.
    pub async fn new() -> Self {
        let headscale = Place::running().await;
        let url = format!("http://{}", headscale.addr());
        let api = Api::start(headscale.access(), url).await;
        let settings = NodeSettings {
            name: "db-1".parse().expect("a name"),
            node_type: Some("mongodb".parse().expect("a type")),
            server: Server::App(SERVER.parse().expect("an app id")),
            app_id: Some(APP.parse::<AppId>().expect("an app id")),
            instance_id: Some(INSTANCE.parse().expect("an instance id")),
            mesh: api.addr,
            tailscale: Some(rendered::program("tailscale")),
            device: false,
            accept_dns: true,
            accept_routes: false,
            heartbeat: Duration::from_millis(500),
            silence: Duration::from_secs(300),
            readers: None,
        };
        Self {
            headscale,
            api,
            home: tempfile::tempdir().expect("a temporary directory"),
            settings: watch::Sender::new(Some(settings)),
            node: None,
            tailscaled: None,
        }
    }

    /// Everything runs.
    pub async fn running() -> Self {
        let mut site = Self::new().await;
        site.start_tailscaled();
        site.start_node();
        site
    }

    /// And has come to an end.
    pub async fn joined() -> Self {
        let site = Self::running().await;
        site.until_joined().await;
        site
    }

    pub fn state(&self) -> StateDir {
        StateDir::new(self.home.path())
    }

    pub fn headscale_url(&self) -> String {
        format!("http://{}", self.headscale.addr())
    }

    /// As supervisord would start it.
    pub fn start_tailscaled(&mut self) {
        let state = self.state();
        let mut spec = Spec {
            role: Role {
                server: false,
                node: true,
            },
            ..Spec::default()
        };
        spec.node.name = Some("db-1".parse().expect("a name"));
        spec.node.tun = Tun::Userspace;
        let mut facts = rendered::facts(&state);
        if let Some(tailscaled) = &mut facts.programs.tailscaled {
            tailscaled.value.path = rendered::program("tailscaled");
        }
        let desired = rendered::render(&spec, &facts, &state).expect("rendered");
        let argv = &desired.programs[&Program::Tailscaled].argv;
        for folder in [state.run(), state.tailscale()] {
            fs::create_dir_all(folder).expect("a folder");
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join("tailscaled.log"))
            .expect("a log file");
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("tailscaled");
        let watchdog = Watchdog::over(child.id());
        self.tailscaled = Some((child, watchdog));
    }

    /// As by `kill -9`.
    pub fn kill_tailscaled(&mut self) {
        if let Some((mut child, _watchdog)) = self.tailscaled.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn wipe_tailscaled(&self) {
        fs::remove_dir_all(self.state().tailscale()).expect("removed");
    }

    pub fn wipe_node(&self) {
        for folder in [self.state().secrets(), self.state().vpc()] {
            fs::remove_dir_all(folder).expect("removed");
        }
    }

    pub fn start_node(&mut self) {
        let settings = self.settings.subscribe();
        self.node = Some(Node::start(settings, self.state(), CancellationToken::new()));
    }

    pub async fn stop_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.join().await;
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut NodeSettings)) {
        self.settings
            .send_modify(|settings| change(settings.as_mut().expect("settings")));
    }

    pub fn set(&self, settings: Option<NodeSettings>) {
        self.settings.send_replace(settings);
    }

    pub fn settings(&self) -> NodeSettings {
        self.settings.borrow().clone().expect("settings")
    }

    pub fn status(&self) -> NodeStatus {
        self.node.as_ref().expect("a node").status.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<NodeStatus> {
        self.node.as_ref().expect("a node").status.clone()
    }

    /// Waits until the status is as it should be.
    pub async fn until(&self, what: &str, is_so: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let found = poll(PATIENCE, async || {
            Some(self.status()).filter(|status| is_so(status))
        })
        .await;
        found.unwrap_or_else(|| {
            let log = fs::read(self.home.path().join("tailscaled.log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let end: Vec<_> = log.lines().rev().take(40).collect();
            panic!("not {what}: {:#?}\n{}", self.status(), end.join("\n"))
        })
    }

    pub async fn until_joined(&self) -> NodeStatus {
        self.until("joined", |it| it.step == Step::Joined && it.problem.is_none())
            .await
    }

    /// Waits until the API has heard `more` announcements than now.
    pub async fn until_heard(&self, more: usize) {
        let before = self.api.announcements().len();
        let heard = poll(PATIENCE, async || {
            (self.api.announcements().len() >= before + more).then_some(())
        });
        if heard.await.is_none() {
            panic!("no heartbeat: {:#?}", self.status());
        }
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.state().vpc().join(name)).unwrap_or_default()
    }

    /// The different modes of the files in a folder.
    pub fn modes(&self, folder: &str) -> Vec<u32> {
        let mut modes: Vec<_> = self
            .files(folder)
            .iter()
            .map(|path| fs::metadata(path).expect("a file").permissions().mode() & 0o7777)
            .collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    }

    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join(folder)).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    pub fn has_key(&self) -> bool {
        self.state().secrets().join("join_key").exists()
    }

    /// What `tailscale debug prefs` prints.
    pub fn prefs(&self) -> serde_json::Value {
        let output = Command::new("curl")
            .arg("-s")
            .arg("--unix-socket")
            .arg(self.state().tailscale_socket())
            .arg("http://local-tailscaled.sock/localapi/v0/prefs")
            .output()
            .expect("curl");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// What Headscale knows: id, name, address of each.
    pub fn members(&self) -> Vec<(u64, String, String)> {
        let nodes = self.headscale.cli(&["nodes", "list"]);
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        nodes
            .iter()
            .map(|node| {
                let id = node["id"].as_u64().unwrap_or_default();
                (id, text(&node["given_name"]), text(&node["ip_addresses"][0]))
            })
            .collect()
    }

    pub async fn end(mut self) {
        self.stop_node().await;
        self.kill_tailscaled();
    }
}

/// What is logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Everything that is logged in this process from now on, by the tests beside this one as well.
    pub fn capture() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
        log
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every command line that names a place, for as long as it is watched.
pub struct CommandLines {
    end: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl CommandLines {
    pub fn watch(place: &Path) -> Self {
        let place = place.to_string_lossy().into_owned();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !ended.load(Ordering::Relaxed) {
                let lines = process::all().into_iter().map(|process| process.command);
                seen.extend(lines.filter(|line| line.contains(&place)));
                std::thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        Self { end, thread }
    }

    pub fn end(self) -> BTreeSet<String> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill_tailscaled();
    }
}
