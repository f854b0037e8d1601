//! The machine itself: disk, checkers, supervisord, nginx and the built-in listeners.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, killpg};
use tokio::sync::watch;

use super::built_in::{Backends, BuiltIn};
use super::exchange::has_ended;
use super::journal::Journal;
use super::machine::Machine;
use super::probe;
use crate::api::{ApiStatus, NodeRow};
use crate::desired::{ListenerSettings, Probe, Program, Reader, check_command};
use crate::facts::Programs;
use crate::facts::ports::holder_of;
use crate::identity::Identity;
use crate::metrics::Sources;
use crate::paths::StateDir;
use crate::plan::{ActionKind, Service, ServiceState};
use crate::supervisor::{Limits, ProcessInfo, State, Supervisor, SupervisorError};

/// A checker that takes longer than this hangs.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// A program that is not up by then is reported.
pub(super) const START: Duration = Duration::from_secs(15);
/// nginx may drain for as long as it was told to, and supervisord kills it at most a minute and a bit later.
const BEYOND_DRAIN: Duration = Duration::from_secs(70);

/// What the listeners of this process need.
pub struct Own {
    pub identity: watch::Receiver<Option<Arc<Identity>>>,
    /// For the metrics.
    pub sources: Sources,
    /// Who may call what nginx, which outlives a daemon, may still be asking for when the listeners open.
    pub former: Backends,
}

/// What [`Machine`] stands for outside tests.
pub struct Real {
    pub(super) supervisor: Supervisor,
    pub(super) nginx_pid_file: PathBuf,
    /// Where the checkers are.
    programs: Mutex<Programs>,
    /// `None`: this process has no listeners (the commands).
    own: Option<Own>,
    pub(super) listeners: tokio::sync::Mutex<Option<BuiltIn>>,
    state: StateDir,
}

impl Real {
    /// `own` is given by the daemon, which owns the listeners.
    pub fn new(state: &StateDir, own: Option<Own>) -> Self {
        Self {
            supervisor: Supervisor::new(state.supervisor_socket()),
            nginx_pid_file: state.run().join("nginx.pid"),
            programs: Mutex::default(),
            own,
            listeners: tokio::sync::Mutex::new(None),
            state: state.clone(),
        }
    }

    /// Tells where the checkers are installed.
    pub fn know(&self, programs: &Programs) {
        self.programs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone_from(programs);
    }

    /// Settings of the listeners, once they are open.
    pub async fn listener_settings(&self) -> Option<ListenerSettings> {
        let listeners = self.listeners.lock().await;
        listeners.as_ref().map(|open| open.settings().clone())
    }

    /// The nodes that the VPC API knows, or why it cannot tell; `None`: it is not open.
    pub async fn nodes(&self) -> Option<Result<Vec<NodeRow>, String>> {
        let listeners = self.listeners.lock().await;
        match listeners.as_ref()?.api() {
            Some(api) => Some(api.nodes().await),
            None => None,
        }
    }

    /// How the VPC API is, where it is open.
    pub async fn api_status(&self) -> Option<watch::Receiver<ApiStatus>> {
        self.listeners.lock().await.as_ref()?.api_status()
    }

    /// supervisord's pid, where it runs.
    pub async fn supervisord(&self) -> Option<i32> {
        self.supervisor.pid().await.ok()
    }

    /// Drains and closes the listeners.
    pub async fn close(&self) {
        let listeners = self.listeners.lock().await.take();
        if let Some(listeners) = listeners {
            listeners.close().await;
        }
    }

    async fn update_listeners(&self, settings: &ListenerSettings) -> Result<(), String> {
        let Some(own) = &self.own else {
            return Ok(());
        };
        let mut listeners = self.listeners.lock().await;
        match &mut *listeners {
            Some(open) => open.update(settings, &self.state).await,
            None => {
                *listeners = Some(BuiltIn::start(settings, own, &self.state).await?);
                Ok(())
            }
        }
    }
}

impl Machine for Real {
    fn open(&self, path: &Path) -> io::Result<(Vec<u8>, u32)> {
        // A link in place of a rendered file is somebody else's file, whatever it says.
        let found = fs::symlink_metadata(path)?;
        if found.is_symlink() {
            return Err(io::Error::other("a link, not a file"));
        }
        Ok((fs::read(path)?, found.permissions().mode() & 0o7777))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn read_link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        match fs::read_link(path) {
            Ok(target) => Ok(Some(target)),
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput].contains(&error.kind()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(mode).create(path)?;
        // The umask has a say at creation, and the folder may be older than its mode.
        let now = fs::metadata(path)?.permissions();
        if now.mode() & 0o7777 != mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    fn write_new(&self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // The umask had a say.
        if file.metadata()?.permissions().mode() & 0o7777 != mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        file.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn why_not(&self, addr: SocketAddr, nginx: Option<i32>) -> Option<String> {
        // std sets SO_REUSEADDR, as nginx does: connections that linger are no obstacle.
        let error = TcpListener::bind(addr).err()?;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let holder = holder_of(addr);
                let pid = holder
                    .as_ref()
                    .and_then(|holder| holder.process.as_ref())
                    .map(|(pid, _)| *pid);
                let pid = pid.and_then(|pid| i32::try_from(pid).ok());
                let ours = nginx
                    .zip(pid)
                    .is_some_and(|(nginx, pid)| pid == nginx || probe::workers(nginx).contains(&pid));
                // Beside what the daemon has on IPv4, `[::]` is for IPv6 alone.
                let beside = pid == Some(std::process::id() as i32)
                    && addr.is_ipv6()
                    && holder.as_ref().is_some_and(|holder| holder.listens.is_ipv4());
                let who = holder.map_or_else(|| "another program".to_owned(), |holder| holder.to_string());
                (!ours && !beside)
                    .then(|| format!("the port is taken by {who}; stop that, or choose another port"))
            }
            io::ErrorKind::PermissionDenied => Some(
                "this user may not open it; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
            ),
            io::ErrorKind::AddrNotAvailable => {
                Some("this machine has no such address; `ip address` lists those it has".to_owned())
            }
            _ => Some(error.to_string()),
        }
    }

    async fn check(&self, reader: Reader, staged: &Path) -> Result<(), String> {
        let programs = self
            .programs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        // Where the next start finds it, should this one be killed.
        let scratch = tempfile::Builder::new()
            .prefix("check-")
            .suffix(".tmp")
            .tempdir_in(self.state.run())
            .map_err(|error| format!("no temporary folder for the check: {error}"))?;
        let check =
            check_command(reader, &programs, staged, scratch.path()).map_err(|error| error.to_string())?;
        let Some(check) = check else { return Ok(()) };
        let [program, arguments @ ..] = check.command.argv.as_slice() else {
            return Ok(());
        };
        let running = tokio::process::Command::new(program)
            .args(arguments)
            .envs(check.env)
            .stdin(Stdio::null())
            // Ctrl-C at the terminal is for us, and ends it by way of us: what it says when it is ended is no refusal.
            .process_group(0)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(CHECK_TIMEOUT, running)
            .await
            .map_err(|_| format!("its check did not end within {CHECK_TIMEOUT:?}"))?
            .map_err(|error| format!("its check could not be started: {program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let words = [output.stdout, output.stderr].concat();
        match String::from_utf8_lossy(&words).trim_end() {
            "" => Err(format!(
                "its check ended with {} and without a word",
                output.status
            )),
            words => Err(words.to_owned()),
        }
    }

    fn end_orphans(&self) -> bool {
        self.release_nginx();
        let Some(master) = self.nginx_master() else {
            return false;
        };
        // supervisord gives each program a process group of its own, so the workers are in their master's. QUIT lets
        // them close their listeners at once and finish what they have begun.
        has_ended(master) && killpg(master, Signal::SIGQUIT).is_ok()
    }

    async fn services(&self) -> Option<BTreeMap<String, Service>> {
        let all = self.supervisor.all().await.ok()?;
        Some(
            all.into_iter()
                .map(|info| (info.name.clone(), service(&info)))
                .collect(),
        )
    }

    async fn ends(&self, action: ActionKind) -> Result<BTreeMap<String, SystemTime>, String> {
        let words = |error: SupervisorError| error.to_string();
        let names = match action {
            ActionKind::UpdateSupervisor => {
                let changes = self.supervisor.reload_config().await.map_err(words)?;
                [changes.changed, changes.removed].concat()
            }
            ActionKind::RestartHeadscale => vec![Program::Headscale.name().to_owned()],
            // Of these it never says that they were stopped.
            ActionKind::UpdateListeners
            | ActionKind::ReloadNginx
            | ActionKind::RestartNginx
            | ActionKind::Start(_) => return Ok(BTreeMap::new()),
        };
        let all = self.supervisor.all().await.map_err(words)?.into_iter();
        let ends = all.filter(|it| names.contains(&it.name) && !it.stopped_on_request());
        Ok(ends.filter_map(|it| Some((it.name, it.started?))).collect())
    }

    async fn act(&self, action: ActionKind, listeners: &ListenerSettings) -> Result<(), String> {
        let words = |error: SupervisorError| error.to_string();
        let limits = Limits {
            start: START,
            stop: listeners.mesh.drain_timeout + BEYOND_DRAIN,
        };
        match action {
            ActionKind::UpdateListeners => self.update_listeners(listeners).await,
            ActionKind::UpdateSupervisor => {
                let journal = Journal::read(self, &self.state).map_err(|error| error.to_string())?;
                let is_ours = |it: &ProcessInfo| {
                    let journal = journal.as_ref();
                    journal.is_some_and(|journal| journal.has_ended(&it.name, it.started))
                };
                let all = self.supervisor.all().await.map_err(words)?.into_iter();
                let ours = all.filter(is_ours).map(|it| it.name).collect();
                self.supervisor
                    .converge(Program::Daemon.name(), &ours, limits)
                    .await
                    .map(drop)
                    .map_err(words)
            }
            ActionKind::ReloadNginx => {
                self.bid_farewell().await;
                let name = Program::Nginx.name();
                self.supervisor.signal(name, "HUP").await.map_err(words)
            }
            ActionKind::RestartNginx => self.restart_nginx().await.map_err(words),
            ActionKind::RestartHeadscale => self
                .supervisor
                .restart(Program::Headscale.name(), limits)
                .await
                .map_err(words),
            ActionKind::Start(program) => self
                .supervisor
                .start(program.name(), Some(START))
                .await
                .map_err(words),
        }
    }

    fn workers(&self, nginx: i32) -> Vec<i32> {
        probe::workers(nginx)
    }

    async fn prove(
        &self,
        probes: &[Probe],
        tag: &str,
        old_workers: &[i32],
        within: Duration,
    ) -> Result<(), String> {
        probe::prove(probes, tag, old_workers, within).await
    }

    async fn settle(&self) {
        if let Some(listeners) = &mut *self.listeners.lock().await {
            listeners.settle().await;
        }
    }
}

fn service(info: &ProcessInfo) -> Service {
    use State::{Running, Starting, Stopped, Stopping};
    let state = match info.state {
        Starting | Running => ServiceState::Up,
        // At supervisord's own start everything is "stopped" for a moment: nobody asked for that.
        Stopped | Stopping if info.started.is_some() => ServiceState::StoppedByOperator,
        _ => ServiceState::Down,
    };
    let detail = if info.spawn_error.is_empty() {
        &info.description
    } else {
        &info.spawn_error
    };
    Service {
        state,
        process: info.state,
        pid: info.pid,
        started: info.started,
        detail: detail.clone(),
    }
}
