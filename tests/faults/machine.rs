//! A machine in memory: a [`Disk`], and what runs on it, a [`World`]. Any step can go wrong in any way.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use dstack_vpc::apply::Machine;
use dstack_vpc::desired::{ListenerSettings, Probe, Program, Reader};
use dstack_vpc::paths::StateDir;
use dstack_vpc::plan::{ActionKind, Service, ServiceState};
use dstack_vpc::supervisor::State;
use nix::errno::Errno;
use tokio::time::sleep;

use super::disk::{Disk, Loss};
use super::world::{World, started};

/// How a step goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A call to the kernel fails. `ENOSPC` and `EIO` come after a part of it was done.
    Errno(Errno),
    /// A child (a checker, supervisord) does not come to an end; it may have done a part of its work.
    Hung,
    /// A child refuses.
    Exit1,
    /// A child is killed after it has done its work.
    Killed,
    /// Our process is dead: neither this step nor any after it happens, but perhaps a part of this one.
    Stop { half: bool },
}

/// What can go wrong with a step depends on what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Child,
}

impl Kind {
    /// All that can fail and be told.
    pub fn errors(self) -> Vec<Fault> {
        match self {
            Self::Read => [Errno::EIO, Errno::EACCES, Errno::EMFILE]
                .map(Fault::Errno)
                .into(),
            Self::Write => [Errno::EIO, Errno::ENOSPC, Errno::EACCES, Errno::EMFILE]
                .map(Fault::Errno)
                .into(),
            Self::Child => [Fault::Hung, Fault::Exit1, Fault::Killed].into(),
        }
    }

    pub fn stops(self) -> Vec<Fault> {
        match self {
            Self::Read => vec![Fault::Stop { half: false }],
            Self::Write | Self::Child => vec![Fault::Stop { half: false }, Fault::Stop { half: true }],
        }
    }
}

pub struct Model {
    state: StateDir,
    inner: Mutex<Inner>,
}

#[derive(Debug, Clone)]
pub(super) struct Inner {
    pub(super) disk: Disk,
    pub(super) world: World,
    /// Each step that was taken, and what it was.
    pub(super) steps: Vec<(Kind, String)>,
    pub(super) faults: Vec<(usize, Fault)>,
    pub(super) dead: bool,
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            inner: Mutex::new(self.inner().clone()),
        }
    }
}

impl Model {
    pub fn new(state: &StateDir) -> Self {
        let inner = Inner {
            disk: Disk::new(state.root()),
            world: World::default(),
            steps: Vec::new(),
            faults: Vec::new(),
            dead: false,
        };
        Self {
            state: state.clone(),
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// From now on steps are counted, and the one at `at` goes wrong.
    pub fn plan(&self, fault: Option<(usize, Fault)>) {
        let mut inner = self.inner();
        inner.steps.clear();
        inner.faults = fault.into_iter().collect();
    }

    /// As [`Model::plan`], with two.
    pub fn plan_both(&self, first: (usize, Fault), second: (usize, Fault)) {
        self.plan(Some(first));
        self.inner().faults.push(second);
    }

    pub fn steps(&self) -> Vec<(Kind, String)> {
        self.inner().steps.clone()
    }

    pub fn is_dead(&self) -> bool {
        self.inner().dead
    }

    pub fn world(&self) -> World {
        self.inner().world.clone()
    }

    /// A new process in the place of a dead one. The programs, and all that was written, are still there.
    pub fn start_anew(&self) {
        let mut inner = self.inner();
        inner.dead = false;
        inner.faults.clear();
        inner.world.listeners = None;
    }

    /// The whole machine is off, and on again.
    pub fn cut(&self, loss: Loss) {
        self.start_anew();
        let mut inner = self.inner();
        inner.disk.cut(loss);
        inner.world = World::default();
    }

    /// What `up` ends with: supervisord, which starts all that its file names.
    pub fn boot(&self) {
        let mut inner = self.inner();
        inner.world.supervisord = Some(BTreeMap::new());
        inner.update_supervisor(&self.state, true, &BTreeSet::new());
    }

    /// Whether the journal says that nginx, as it was started last, was to be stopped.
    pub fn was_nginx_to_end(&self) -> bool {
        self.inner().was_to_end(&self.state, Program::Nginx.name())
    }

    /// What an operator does with `supervisorctl stop`.
    pub fn stop_nginx(&self) {
        let world = &mut self.inner().world;
        world.nginx = None;
        let nginx = world.supervisord.as_mut().and_then(|all| all.get_mut("nginx"));
        nginx.expect("nginx").1 = ServiceState::StoppedByOperator;
    }

    pub fn mode(&self, path: &Path) -> Option<u32> {
        self.inner().disk.mode(path)
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.inner().disk.paths()
    }

    fn step(&self, kind: Kind, what: impl FnOnce() -> String) -> Result<(), Fault> {
        let mut inner = self.inner();
        if inner.dead {
            return Err(Fault::Stop { half: false });
        }
        let at = inner.steps.len();
        inner.steps.push((kind, what()));
        match inner.faults.iter().find(|(planned, _)| *planned == at) {
            Some((_, fault)) => {
                let fault = *fault;
                inner.dead = matches!(fault, Fault::Stop { .. });
                Err(fault)
            }
            None => Ok(()),
        }
    }
}

impl Fault {
    fn io(self) -> io::Error {
        match self {
            Self::Errno(errno) => errno.into(),
            _ => io::Error::other("dead"),
        }
    }

    /// A part of a call to the kernel was done before it failed.
    fn half(self) -> bool {
        matches!(self, Self::Errno(Errno::ENOSPC) | Self::Stop { half: true })
    }

    async fn words(self) -> String {
        if self == Self::Hung {
            sleep(Duration::from_secs(60)).await;
        }
        format!("{self:?}")
    }
}

impl Machine for Model {
    fn open(&self, path: &Path) -> io::Result<(Vec<u8>, u32)> {
        self.step(Kind::Read, || format!("read {}", path.display()))
            .map_err(Fault::io)?;
        let disk = &self.inner().disk;
        Ok((disk.read(path)?, disk.mode(path).unwrap_or_default()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.step(Kind::Read, || format!("list {}", dir.display()))
            .map_err(Fault::io)?;
        Ok(self.inner().disk.list(dir)?)
    }

    fn read_link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.step(Kind::Read, || format!("read link {}", path.display()))
            .map_err(Fault::io)?;
        Ok(self.inner().disk.read_link(path)?)
    }

    fn make_dir(&self, path: &Path, _: u32) -> io::Result<()> {
        let step = self.step(Kind::Write, || format!("make {}", path.display()));
        if let Err(fault) = step {
            if fault.half() {
                self.inner().disk.make_dir(path.parent().unwrap_or(path))?;
            }
            return Err(fault.io());
        }
        Ok(self.inner().disk.make_dir(path)?)
    }

    fn write_new(&self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let step = self.step(Kind::Write, || format!("write {}", path.display()));
        let disk = &mut self.inner().disk;
        if let Err(fault) = step {
            if fault.half() || fault == Fault::Errno(Errno::EIO) {
                disk.write_new(path, mode, &bytes[..bytes.len() / 2])?;
            }
            return Err(fault.io());
        }
        Ok(disk.write_new(path, mode, bytes)?)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(Kind::Write, || format!("sync {}", path.display()))
            .map_err(Fault::io)?;
        Ok(self.inner().disk.sync(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Kind::Write, || format!("rename to {}", to.display()))
            .map_err(Fault::io)?;
        Ok(self.inner().disk.rename(from, to)?)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.step(Kind::Write, || format!("link {}", link.display()))
            .map_err(Fault::io)?;
        Ok(self.inner().disk.symlink(target, link)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let step = self.step(Kind::Write, || format!("remove {}", path.display()));
        let disk = &mut self.inner().disk;
        if let Err(fault) = step {
            if fault.half() || fault == Fault::Errno(Errno::EIO) {
                disk.remove(path, true)?;
            }
            return Err(fault.io());
        }
        Ok(disk.remove(path, false)?)
    }

    fn why_not(&self, addr: SocketAddr, _: Option<i32>) -> Option<String> {
        let step = self.step(Kind::Child, || format!("ask for {addr}"));
        step.err().map(|fault| format!("{fault:?}"))
    }

    fn end_orphans(&self) -> bool {
        false
    }

    async fn check(&self, reader: Reader, staged: &Path) -> Result<(), String> {
        if let Err(fault) = self.step(Kind::Child, || format!("check for {reader:?}")) {
            return Err(fault.words().await);
        }
        assert!(
            self.inner()
                .disk
                .list(staged)
                .is_ok_and(|names| !names.is_empty())
        );
        Ok(())
    }

    async fn services(&self) -> Option<BTreeMap<String, Service>> {
        if let Err(fault) = self.step(Kind::Child, || "ask supervisord".to_owned()) {
            fault.words().await;
            return None;
        }
        let world = self.world();
        let known = world.supervisord?;
        let service = |times: u32, state| Service {
            state,
            process: State::Running,
            pid: i32::try_from(times).ok(),
            started: Some(started(times)),
            detail: String::new(),
        };
        Some(
            known
                .into_iter()
                .map(|(name, (_, state))| {
                    let service = service(world.starts[&name], state);
                    (name, service)
                })
                .collect(),
        )
    }

    async fn ends(&self, action: ActionKind) -> Result<BTreeMap<String, SystemTime>, String> {
        let ends = self.inner().ends(&self.state, action);
        if let (false, Err(fault)) = (
            ends.is_empty(),
            self.step(Kind::Child, || format!("what {action:?} ends")),
        ) {
            return Err(fault.words().await);
        }
        Ok(ends)
    }

    async fn act(&self, action: ActionKind, listeners: &ListenerSettings) -> Result<(), String> {
        let step = self.step(Kind::Child, || format!("{action:?}"));
        let result = match step {
            Ok(()) => Ok(true),
            Err(Fault::Killed) => Err((Fault::Killed, Some(true))),
            Err(fault @ (Fault::Hung | Fault::Stop { half: true })) => Err((fault, Some(false))),
            Err(fault) => Err((fault, None)),
        };
        let whole = match result {
            Ok(whole) => Some(whole),
            Err((_, whole)) => whole,
        };
        if let Some(whole) = whole {
            self.inner().act(&self.state, action, listeners, whole);
        }
        match result {
            Ok(_) => Ok(()),
            Err((fault, _)) => Err(fault.words().await),
        }
    }

    fn workers(&self, _: i32) -> Vec<i32> {
        Vec::new()
    }

    async fn prove(&self, probes: &[Probe], tag: &str, _: &[i32], within: Duration) -> Result<(), String> {
        if let Err(fault) = self.step(Kind::Child, || format!("ask {} listeners", probes.len())) {
            return Err(fault.words().await);
        }
        let world = self.world();
        if probes.iter().any(|probe| !probe.has_tag()) {
            let known = world.supervisord.clone().unwrap_or_default();
            let up = |(_, state): &(String, ServiceState)| *state == ServiceState::Up;
            if !known.get(Program::Headscale.name()).is_some_and(up) {
                return Err(format!("Headscale does not answer within {within:?}"));
            }
            if !probes.iter().any(Probe::has_tag) {
                return Ok(());
            }
        }
        let front = world.listeners.and_then(|listeners| listeners.mesh.front);
        let served = match front {
            Some(front) => front.tag == tag,
            None => {
                let conf = world.nginx.unwrap_or_default();
                String::from_utf8_lossy(&conf).contains(&format!("return 200 \"{tag}\""))
            }
        };
        match served {
            true => Ok(()),
            false => Err(format!("not served within {within:?}")),
        }
    }

    async fn settle(&self) {}
}
