//! What runs on the machine in memory: supervisord, nginx and Headscale, as far as they matter here. Each serves what it
//! read last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dstack_vpc::apply::journal::Journal;
use dstack_vpc::desired::{ListenerSettings, Program};
use dstack_vpc::paths::StateDir;
use dstack_vpc::plan::{ActionKind, ServiceState};

use super::machine::Inner;

/// What runs.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Programs that supervisord knows, with their section; `None`: it does not run.
    pub supervisord: Option<BTreeMap<String, (String, ServiceState)>>,
    /// What nginx read last.
    pub nginx: Option<Vec<u8>>,
    pub headscale: Option<Vec<u8>>,
    /// Ours: they end with our process.
    pub listeners: Option<ListenerSettings>,
    /// How often each program was started.
    pub starts: BTreeMap<String, u32>,
}

/// When a program was started for the so manieth time.
pub(super) fn started(times: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(times.into())
}

/// The sections that a supervisord.conf has for programs.
pub fn sections(conf: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(conf).into_owned();
    let sections = text.split("\n[").filter_map(|section| {
        let (name, rest) = section.strip_prefix("program:")?.split_once(']')?;
        Some((name.to_owned(), rest.trim_end().to_owned()))
    });
    sections.collect()
}

impl Inner {
    fn current(&self, state: &StateDir, path: &str) -> Option<Vec<u8>> {
        self.disk.read(&state.current().join(path)).ok()
    }

    fn load_nginx(&mut self, state: &StateDir) {
        self.world.nginx = self.current(state, "nginx/nginx.conf");
    }

    /// It goes on as it was where it cannot open a socket.
    fn reload_nginx(&mut self, state: &StateDir) {
        let new = self.current(state, "nginx/nginx.conf");
        if !is_in_the_way(self.world.nginx.as_deref(), new.as_deref()) {
            self.world.nginx = new;
        }
    }

    /// Those that an operator has stopped: of an update that goes on with another one only its journal knows.
    fn stopped(&self, state: &StateDir) -> BTreeSet<String> {
        let is_ours = |name: &str| self.was_to_end(state, name);
        let known = self.world.supervisord.iter().flatten();
        let stopped = known.filter(|(_, (_, state))| *state == ServiceState::StoppedByOperator);
        let names = stopped.map(|(name, _)| name.clone());
        names.filter(|name| !is_ours(name)).collect()
    }

    /// Whether the journal says that we were about to stop the program as it was started last.
    pub(super) fn was_to_end(&self, state: &StateDir, name: &str) -> bool {
        let journal = self.disk.read(&state.run().join("journal.json"));
        let journal: Option<Journal> = journal.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let since = self.world.starts.get(name).copied().map(started);
        journal.is_some_and(|journal| journal.has_ended(name, since))
    }

    /// The programs that an action stops.
    pub(super) fn ends(&self, state: &StateDir, action: ActionKind) -> BTreeMap<String, SystemTime> {
        let known = self.world.supervisord.iter().flatten();
        let up = known.filter(|(_, (_, state))| *state == ServiceState::Up);
        let conf = self.current(state, "supervisor/supervisord.conf");
        let wanted = sections(&conf.unwrap_or_default());
        let ends = up.filter(|(name, (section, _))| match action {
            ActionKind::UpdateSupervisor => {
                wanted.get(*name) != Some(section) && *name != Program::Daemon.name()
            }
            ActionKind::RestartHeadscale => *name == Program::Headscale.name(),
            _ => false,
        });
        ends.map(|(name, _)| (name.clone(), started(self.world.starts[name])))
            .collect()
    }

    fn has_started(&mut self, program: &str) {
        *self.world.starts.entry(program.to_owned()).or_default() += 1;
    }

    /// What changed is stopped; only if `whole` is everything started, too. What is `held` stays as it is.
    pub(super) fn update_supervisor(&mut self, state: &StateDir, whole: bool, held: &BTreeSet<String>) {
        let conf = self
            .current(state, "supervisor/supervisord.conf")
            .unwrap_or_default();
        let wanted = sections(&conf);
        let mut known = self.world.supervisord.take().unwrap_or_default();
        for (name, (section, state)) in &mut known {
            if wanted.get(name) != Some(section) && name != Program::Daemon.name() && !held.contains(name) {
                *state = ServiceState::StoppedByOperator;
                match name.as_str() {
                    "nginx" => self.world.nginx = None,
                    "headscale" => self.world.headscale = None,
                    _ => {}
                }
            }
        }
        if whole {
            known.retain(|name, _| wanted.contains_key(name));
            for (name, section) in wanted.into_iter().filter(|(name, _)| !held.contains(name)) {
                let up = known
                    .get(&name)
                    .is_some_and(|(_, state)| *state == ServiceState::Up);
                known.insert(name.clone(), (section, ServiceState::Up));
                if !up {
                    self.has_started(&name);
                }
                match name.as_str() {
                    "nginx" if !up => self.load_nginx(state),
                    "headscale" if !up => {
                        self.world.headscale = self.current(state, "headscale/headscale.yaml");
                    }
                    _ => {}
                }
            }
        }
        self.world.supervisord = Some(known);
    }

    pub(super) fn act(
        &mut self,
        state: &StateDir,
        action: ActionKind,
        settings: &ListenerSettings,
        whole: bool,
    ) {
        match action {
            ActionKind::UpdateSupervisor => {
                let held = self.stopped(state);
                self.update_supervisor(state, whole, &held);
            }
            ActionKind::UpdateListeners if whole => self.world.listeners = Some(settings.clone()),
            ActionKind::ReloadNginx if whole => self.reload_nginx(state),
            ActionKind::RestartNginx => {
                self.world.nginx = None;
                let nginx = self.world.supervisord.iter_mut().flatten();
                for (_, (_, state)) in nginx.filter(|(name, _)| *name == Program::Nginx.name()) {
                    *state = ServiceState::Down;
                }
                if whole {
                    self.start(state, Program::Nginx, whole);
                }
            }
            ActionKind::RestartHeadscale => {
                self.world.headscale = None;
                self.start(state, Program::Headscale, whole);
            }
            // Before it is there, nothing has changed: nobody is stopped for it.
            ActionKind::Start(program) if whole => self.start(state, program, whole),
            _ => {}
        }
    }

    fn start(&mut self, state: &StateDir, program: Program, whole: bool) {
        if whole {
            self.has_started(program.name());
            match program {
                Program::Nginx => self.load_nginx(state),
                Program::Headscale => {
                    self.world.headscale = self.current(state, "headscale/headscale.yaml");
                }
                _ => {}
            }
        }
        let known = self.world.supervisord.iter_mut().flatten();
        for (_, (_, state)) in known.filter(|(name, _)| *name == program.name()) {
            *state = match whole {
                true => ServiceState::Up,
                false => ServiceState::StoppedByOperator,
            };
        }
    }
}

/// What the kernel would not open beside what is still open. By address whether `[::]` takes IPv4, too.
fn is_in_the_way(old: Option<&[u8]>, new: Option<&[u8]>) -> bool {
    let open = |conf: Option<&[u8]>| {
        let text = String::from_utf8_lossy(conf.unwrap_or_default()).into_owned();
        let mut open: BTreeMap<SocketAddr, bool> = BTreeMap::new();
        for line in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("listen "))
        {
            let addr = line.split(' ').next().map(|word| word.trim_matches(['"', ';']));
            let addr = addr.and_then(|word| word.parse().ok()).expect("an address");
            *open.entry(addr).or_default() |= line.contains("ipv6only=off");
        }
        open
    };
    let any = |(addr, both): (&SocketAddr, &bool), other: &SocketAddr| {
        addr.ip().is_unspecified() && (addr.is_ipv4() == other.is_ipv4() || *both)
    };
    let (old, new) = (open(old), open(new));
    let mut leaving = old.iter().filter(|(addr, both)| new.get(addr) != Some(both));
    leaving.any(|old| {
        let mut there = new.iter().filter(|(addr, _)| addr.port() == old.0.port());
        there.any(|new| new.0 == old.0 || any(old, new.0) || any(new, old.0))
    })
}
