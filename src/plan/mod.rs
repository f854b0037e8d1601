//! The difference between desired and present, as the smallest ordered set of actions: a pure function.

mod causes;
mod changes;
mod document;
mod effects;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod listeners;
mod report;
mod secrets;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::desired::{Desired, ListenerSettings, NGINX, Program, Reader};
use crate::supervisor::State;
pub use causes::{After, Before, Cause};
pub use changes::FileChange;
use changes::{changes, file_changes, headscale_reads_other, meaning_changed, touched};
use listeners::listener_reason;
pub use report::{FileReport, Report, report_schema};
pub(crate) use report::{differences, words};
pub use sockets::Socket;
use sockets::are_in_the_way;
pub(crate) use sockets::sockets;

/// What is there now, as far as it could be seen.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// Number of the generation that `current` points to.
    pub generation: Option<u32>,
    /// The files of that generation as they are on disk, by path below its folder.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The modes of those whose mode is known.
    pub modes: BTreeMap<String, u32>,
    /// What the Headscale that runs has read, where that was seen: its files may have been edited since.
    pub headscale_read: Option<BTreeMap<String, Vec<u8>>>,
    pub listeners: Listeners,
    /// What supervisord says of its programs; `None`: it cannot be reached.
    pub services: Option<BTreeMap<String, Service>>,
    /// Files whose readers have not been shown to use them yet (an unfinished journal).
    pub owed: bool,
    /// Sockets that nginx may still have open, of generations before the one that is owed.
    pub held: BTreeSet<Socket>,
}

/// The built-in listeners, as seen from this process.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Listeners {
    /// They are the daemon's, and this is not the daemon.
    #[default]
    NotOurs,
    /// The daemon has not opened them yet.
    Closed,
    Open(Box<ListenerSettings>),
}

/// One supervised program, in the terms that matter to a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub state: ServiceState,
    /// What supervisord calls that.
    pub process: State,
    pub pid: Option<i32>,
    /// When it was last started.
    pub started: Option<SystemTime>,
    /// supervisord's own words, e.g. `Exited too quickly`.
    pub detail: String,
}

impl Service {
    /// Nobody but us can have stopped it.
    pub(crate) fn is_ours(&mut self) {
        if self.state == ServiceState::StoppedByOperator {
            self.state = ServiceState::Down;
        }
    }

    /// Up for long enough that supervisord takes it for well.
    pub fn is_steady(&self) -> bool {
        self.state == ServiceState::Up && self.process == State::Running
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// Running, or started a moment ago.
    Up,
    /// Somebody asked supervisord to stop it: that is respected.
    StoppedByOperator,
    /// Not running and not asked to stop.
    Down,
}

/// What has to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What differs in the settings and facts, once [`Plan::find_causes`] has looked.
    pub causes: Vec<Cause>,
    pub files: Vec<FileChange>,
    /// In the order they are carried out.
    pub actions: Vec<Action>,
    /// Programs that should run and cannot, in sentences.
    pub missing: Vec<String>,
    /// What is left as it is on purpose, in sentences.
    pub notes: Vec<String>,
}

/// One step on a running program, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub kind: ActionKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// Give the built-in listeners their new settings, in place.
    UpdateListeners,
    /// Let supervisord read its file again and add, remove or restart what changed there.
    UpdateSupervisor,
    /// HUP: new workers on the new configuration, old ones finish their requests.
    ReloadNginx,
    /// Where old sockets are in the way of new ones: a new nginx beside the old workers, which finish their requests.
    RestartNginx,
    /// Headscale reads its configuration only at start.
    RestartHeadscale,
    /// Start a program that should run and does not.
    Start(Program),
}

impl Plan {
    /// True when the machine is the way it should be.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.actions.is_empty()
    }
}

/// The smallest set of steps from `present` to `desired`; each names the difference that causes it.
pub fn plan(desired: &Desired, present: &Present) -> Plan {
    let files = file_changes(desired, present);
    let mut notes = desired.notes.clone();

    let listeners = match &present.listeners {
        Listeners::Open(now) if **now != desired.listeners => Some(listener_reason(now, &desired.listeners)),
        Listeners::Open(_) => None,
        Listeners::Closed => Some("they are not open yet".to_owned()),
        Listeners::NotOurs => {
            touched(&files, Reader::Daemon).then(|| "the effective settings changed".to_owned())
        }
    };
    let listeners = listeners.map(|reason| Action {
        kind: ActionKind::UpdateListeners,
        reason,
    });
    let mut told = Vec::new();
    match &present.services {
        Some(services) => service_actions(desired, present, &files, services, &mut told, &mut notes),
        None => notes.push("supervisord is not running: its programs are left alone until it is".into()),
    }
    // Of two on the same ports the one that goes has to be first.
    let mut kinds = told.iter().map(|action: &Action| action.kind);
    let changes_front = desired.listeners.mesh.front.is_some() && has_nginx(present);
    let actions = match changes_front || kinds.any(|kind| kind == ActionKind::RestartNginx) {
        true => told.into_iter().chain(listeners).collect(),
        false => listeners.into_iter().chain(told).collect(),
    };
    Plan {
        causes: Vec::new(),
        files,
        actions,
        missing: desired.missing.values().cloned().collect(),
        notes,
    }
}

fn has_nginx(present: &Present) -> bool {
    let services = present.services.as_ref();
    services.is_some_and(|services| services.contains_key(Program::Nginx.name()))
}

/// How nginx, which runs, hears of its new file.
fn retell_nginx(present: &Present, new: Option<&Vec<u8>>) -> ActionKind {
    let of = |conf: Option<&Vec<u8>>| conf.map(|conf| sockets(conf)).unwrap_or_default();
    let mut open = of(present.files.get(NGINX));
    open.extend(&present.held);
    match are_in_the_way(&open, &of(new)) {
        true => ActionKind::RestartNginx,
        false => ActionKind::ReloadNginx,
    }
}

/// The way back: from the generation that failed (`present`) to the files of an earlier one.
pub fn back(present: &Present, good: &BTreeMap<String, Vec<u8>>) -> Plan {
    let files = changes(&present.files, good);
    let mut kinds = Vec::new();
    let (listeners, builtin) = match &present.listeners {
        Listeners::Open(before) => (true, before.mesh.front.is_some()),
        Listeners::Closed | Listeners::NotOurs => (false, false),
    };
    if let Some(services) = &present.services {
        let state = |program: Program| services.get(program.name()).map(|s| s.state);
        if touched(&files, Reader::Supervisord) {
            kinds.push(ActionKind::UpdateSupervisor);
        }
        match state(Program::Nginx) {
            Some(ServiceState::Up) if touched(&files, Reader::Nginx) => {
                kinds.push(retell_nginx(present, good.get(NGINX)))
            }
            Some(ServiceState::Down) => kinds.push(ActionKind::Start(Program::Nginx)),
            _ => {}
        }
        // Where there was no server before, Headscale goes with the update of supervisord.
        if good.keys().any(|path| Reader::of(path) == Reader::Headscale) {
            match state(Program::Headscale) {
                Some(ServiceState::Up) if meaning_changed(&files) => kinds.push(ActionKind::RestartHeadscale),
                Some(ServiceState::Down) => kinds.push(ActionKind::Start(Program::Headscale)),
                _ => {}
            }
        }
    }
    if listeners {
        let after_nginx = (builtin && has_nginx(present)) || kinds.contains(&ActionKind::RestartNginx);
        let at = if after_nginx { kinds.len() } else { 0 };
        kinds.insert(at, ActionKind::UpdateListeners);
    }
    let reason = "the new configuration failed".to_owned();
    let actions = kinds
        .into_iter()
        .map(|kind| Action {
            kind,
            reason: reason.clone(),
        })
        .collect();
    Plan {
        files,
        actions,
        ..Plan::default()
    }
}

/// What an unfinished journal asks for: whoever may not have heard of the files is told again.
pub fn owed(present: &Present) -> Vec<ActionKind> {
    if !present.owed {
        return Vec::new();
    }
    let state = |program: Program| {
        let services = present.services.as_ref();
        services
            .and_then(|services| services.get(program.name()))
            .map(|service| service.state)
    };
    let mut owed = vec![ActionKind::UpdateSupervisor];
    for (program, told) in [
        (Program::Nginx, retell_nginx(present, present.files.get(NGINX))),
        (Program::Headscale, ActionKind::RestartHeadscale),
    ] {
        let reads = |path: &String| program.name() == path.split('/').next().unwrap_or_default();
        if present.files.keys().any(reads) {
            match state(program) {
                Some(ServiceState::Up) => owed.push(told),
                Some(ServiceState::StoppedByOperator) => {}
                Some(ServiceState::Down) | None => owed.push(ActionKind::Start(program)),
            }
        }
    }
    owed
}

fn service_actions(
    desired: &Desired,
    present: &Present,
    files: &[FileChange],
    services: &BTreeMap<String, Service>,
    actions: &mut Vec<Action>,
    notes: &mut Vec<String>,
) {
    // A journal that was not finished says that a program may not have heard of its file: tell it again.
    let heard = |reader: Reader| !present.owed && !touched(files, reader);
    let cause = |what: &str| {
        if present.owed {
            format!("{what} has not been seen to serve yet")
        } else {
            format!("{what} changed")
        }
    };

    let known = |program: &Program| services.contains_key(program.name());
    let missing: Vec<_> = desired.programs.keys().filter(|p| !known(p)).collect();
    if !heard(Reader::Supervisord) {
        actions.push(Action {
            kind: ActionKind::UpdateSupervisor,
            reason: cause("supervisord.conf"),
        });
    } else if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|p| p.name()).collect();
        actions.push(Action {
            kind: ActionKind::UpdateSupervisor,
            reason: format!("supervisord does not know {}", names.join(", ")),
        });
    }

    for program in desired.programs.keys() {
        let Some(service) = services.get(program.name()) else {
            continue;
        };
        match (service.state, program) {
            (ServiceState::StoppedByOperator, _) => notes.push(format!(
                "{name} was stopped by hand and stays so; `supervisorctl start {name}` ends that",
                name = program.name()
            )),
            (ServiceState::Down, _) => actions.push(Action {
                kind: ActionKind::Start(*program),
                reason: format!("it should run and does not ({})", service.detail),
            }),
            (ServiceState::Up, Program::Nginx) if !heard(Reader::Nginx) => actions.push(Action {
                kind: retell_nginx(present, desired.files.get(NGINX).map(|file| &file.bytes)),
                reason: cause("nginx.conf"),
            }),
            (ServiceState::Up, Program::Headscale)
                if present.owed || headscale_reads_other(files, desired, present) =>
            {
                actions.push(Action {
                    kind: ActionKind::RestartHeadscale,
                    reason: cause("headscale's configuration"),
                });
            }
            (ServiceState::Up, _) => {}
        }
    }
}

#[cfg(test)]
mod tests;
