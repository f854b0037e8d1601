//! What a round sees of the machine: the disk, the listeners, the programs, and whether they are what they say.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::unistd::Pid;

use super::Daemon;
use super::source::Wish;
use super::watch::Made;
use crate::apply::{self, Applied, DiskError, Machine, generation};
use crate::desired::{Desired, Program};
use crate::paths::StateDir;
use crate::plan::{ActionKind, Before, Listeners, Plan, Present, ServiceState};

/// How long an nginx that has just been started may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

impl Daemon {
    pub(super) async fn present(&self) -> Result<Present, DiskError> {
        let mut present = apply::look(&*self.machine, &self.state).await?;
        present.listeners = match self.machine.listener_settings().await {
            Some(settings) => Listeners::Open(Box::new(settings)),
            None => Listeners::Closed,
        };
        Ok(present)
    }

    /// An nginx that was started by supervisord or by hand proves itself, too: while its port is taken it counts as
    /// running, and tries for longer than supervisord looks.
    pub(super) async fn ask_nginx(&mut self, present: &mut Present) {
        let nginx = present
            .services
            .as_mut()
            .and_then(|all| all.get_mut(Program::Nginx.name()));
        let Some(nginx) = nginx.filter(|nginx| nginx.state == ServiceState::Up && nginx.pid != self.asked)
        else {
            return;
        };
        let manifest = present
            .generation
            .and_then(|number| generation::manifest(&*self.machine, &self.state, number));
        let Some(mut manifest) = manifest else { return };
        manifest.probes.retain(|probe| probe.of == Program::Nginx);
        let Err(silence) = self
            .machine
            .prove(&manifest.probes, &manifest.tag, &[], ANSWER)
            .await
        else {
            self.asked = nginx.pid;
            return;
        };
        let taken = manifest.probes.iter().find_map(|probe| {
            let why = self.machine.why_not(probe.listen, nginx.pid)?;
            Some(format!("{} = \"{}\": {why}", probe.key, probe.listen))
        });
        nginx.state = ServiceState::Down;
        nginx.detail = taken.unwrap_or(silence);
    }

    /// Watches what is live now.
    pub(super) fn look_around(&mut self) {
        let link = self.state.current();
        let target = self.machine.read_link(&link).ok().flatten();
        let root = target.as_ref().map(|target| self.state.root().join(target));
        let inner = root
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok())
            .flatten()
            .flatten();
        let inner: Vec<_> = inner
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        let folders = root.into_iter().chain(inner).collect();
        self.watch.follow(Made {
            link,
            target,
            folders,
        });
    }

    /// Their ends are heard of.
    pub(super) async fn follow_programs(&mut self, present: &Present) {
        let own = std::process::id() as i32;
        let services = present.services.iter().flatten();
        let pids = services.filter_map(|(_, service)| service.pid.filter(|pid| *pid != own));
        let supervisord = match self.children.is_of_supervisord() {
            true => None,
            false => self.machine.supervisord().await,
        };
        self.children.follow(pids.chain(supervisord));
    }
}

/// What was just seen, or was done and proven since, need not be looked at again.
pub(super) fn known(seen: Present, applied: &Applied, desired: &Desired, plan: &Plan) -> Option<Present> {
    if !applied.changed {
        return Some(seen);
    }
    let mut kinds = plan.actions.iter().map(|action| action.kind);
    let same_programs =
        kinds.all(|kind| matches!(kind, ActionKind::UpdateListeners | ActionKind::ReloadNginx));
    let files = desired
        .files
        .iter()
        .map(|(path, file)| (path.clone(), file.bytes.clone()));
    let modes = desired.files.iter().map(|(path, file)| (path.clone(), file.mode));
    (applied.proven && same_programs).then(|| Present {
        generation: Some(applied.generation),
        files: files.collect(),
        modes: modes.collect(),
        listeners: Listeners::Open(Box::new(desired.listeners.clone())),
        owed: false,
        held: BTreeSet::new(),
        ..seen
    })
}

/// supervisord takes a program for running until it looks the next time.
pub(super) fn bury(present: &mut Present) {
    for service in present.services.iter_mut().flatten().map(|(_, service)| service) {
        if service
            .pid
            .is_some_and(|pid| apply::has_ended(Pid::from_raw(pid)))
        {
            service.state = ServiceState::Down;
            "it has just ended, and supervisord starts it again".clone_into(&mut service.detail);
        }
    }
}

/// What the live generation was made from, `live` where that is known, and what was edited of it since.
pub fn before<M: Machine>(machine: &M, state: &StateDir, present: &Present, live: Option<&Wish>) -> Before {
    let manifest = present
        .generation
        .and_then(|number| generation::manifest(machine, state, number));
    let drifted = present.generation.map(|_| match &manifest {
        Some(manifest) => manifest.drifted(&present.files),
        None => vec![generation::MANIFEST.to_owned()],
    });
    Before {
        spec: match live {
            Some(live) => Some(live.spec().clone()),
            None => Wish::last_good(machine, state).map(|wish| wish.spec().clone()),
        },
        facts: manifest.map(|manifest| manifest.facts).unwrap_or_default(),
        drifted: drifted.unwrap_or_default(),
    }
}
