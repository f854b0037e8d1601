//! The difference between desired and present, as the smallest ordered set of actions: a pure function.

mod causes;
mod effects;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod report;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Desired, ListenerSettings, Program, Reader};
use crate::supervisor::State;
pub use causes::{After, Before, Cause};
pub use report::{FileReport, Report, report_schema};
pub(crate) use report::{differences, words};

/// What is there now, as far as it could be seen.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// Number of the generation that `current` points to.
    pub generation: Option<u32>,
    /// The files of that generation as they are on disk, by path below its folder.
    pub files: BTreeMap<String, Vec<u8>>,
    pub listeners: Listeners,
    /// What supervisord says of its programs; `None`: it cannot be reached.
    pub services: Option<BTreeMap<String, Service>>,
    /// Files whose readers have not been shown to use them yet (an unfinished journal).
    pub owed: bool,
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
    /// supervisord's own words, e.g. `Exited too quickly`.
    pub detail: String,
}

impl Service {
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    pub reader: Reader,
    pub before: Option<Vec<u8>>,
    pub after: Option<Vec<u8>>,
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
    UpdateSupervisor {
        /// An earlier update may have been cut off after it stopped a program: what is found stopped was not
        /// stopped by an operator.
        interrupted: bool,
    },
    /// HUP: new workers on the new configuration, old ones finish their requests.
    ReloadNginx,
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
    let mut actions = Vec::new();
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
    // Of two fronts on the same ports the one that goes has to be first.
    let after_nginx = desired.listeners.mesh.front.is_some() && has_nginx(present);
    let (first, last) = match after_nginx {
        true => (None, listeners),
        false => (listeners, None),
    };
    actions.extend(first);

    match &present.services {
        Some(services) => service_actions(desired, present, &files, services, &mut actions, &mut notes),
        None => notes.push("supervisord is not running: its programs are left alone until it is".into()),
    }
    actions.extend(last);
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

/// The way back: from the generation that failed (`present`) to the files of an earlier one.
pub fn back(present: &Present, good: &BTreeMap<String, Vec<u8>>) -> Plan {
    let files = changes(&present.files, good);
    let mut kinds = Vec::new();
    let (listeners, builtin) = match &present.listeners {
        Listeners::Open(before) => (true, before.mesh.front.is_some()),
        Listeners::Closed | Listeners::NotOurs => (false, false),
    };
    let after_nginx = builtin && has_nginx(present);
    if listeners && !after_nginx {
        kinds.push(ActionKind::UpdateListeners);
    }
    if let Some(services) = &present.services {
        let state = |program: Program| services.get(program.name()).map(|s| s.state);
        if touched(&files, Reader::Supervisord) {
            kinds.push(ActionKind::UpdateSupervisor { interrupted: true });
        }
        match state(Program::Nginx) {
            Some(ServiceState::Up) if touched(&files, Reader::Nginx) => kinds.push(ActionKind::ReloadNginx),
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
    if listeners && after_nginx {
        kinds.push(ActionKind::UpdateListeners);
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

/// What differs between the files of two generations.
fn changes(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> Vec<FileChange> {
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    let changes = changed.map(|path| FileChange {
        path: path.clone(),
        reader: Reader::of(path),
        before: before.get(path).cloned(),
        after: after.get(path).cloned(),
    });
    changes.collect()
}

/// What an unfinished journal asks for: whoever may not have heard of the files is told again.
pub fn owed(present: &Present) -> Vec<ActionKind> {
    if !present.owed {
        return Vec::new();
    }
    let up = |program: Program| {
        let services = present.services.iter().flatten();
        let mut named = services.filter(|(name, _)| *name == program.name());
        named.any(|(_, service)| service.state == ServiceState::Up)
    };
    let mut owed = vec![ActionKind::UpdateSupervisor { interrupted: true }];
    for (program, told) in [
        (Program::Nginx, ActionKind::ReloadNginx),
        (Program::Headscale, ActionKind::RestartHeadscale),
    ] {
        let reads = |path: &String| program.name() == path.split('/').next().unwrap_or_default();
        if present.files.keys().any(reads) {
            owed.push(match up(program) {
                true => told,
                false => ActionKind::Start(program),
            });
        }
    }
    owed
}

fn file_changes(desired: &Desired, present: &Present) -> Vec<FileChange> {
    let mut changes: Vec<_> = desired
        .files
        .iter()
        .filter(|(path, file)| present.files.get(*path) != Some(&file.bytes))
        .map(|(path, file)| FileChange {
            path: path.clone(),
            reader: file.reader,
            before: present.files.get(path).cloned(),
            after: Some(file.bytes.clone()),
        })
        .collect();
    changes.extend(
        present
            .files
            .iter()
            .filter(|(path, _)| !desired.files.contains_key(*path))
            .map(|(path, bytes)| FileChange {
                path: path.clone(),
                reader: Reader::of(path),
                before: Some(bytes.clone()),
                after: None,
            }),
    );
    changes
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
            kind: ActionKind::UpdateSupervisor {
                interrupted: present.owed,
            },
            reason: cause("supervisord.conf"),
        });
    } else if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|p| p.name()).collect();
        actions.push(Action {
            kind: ActionKind::UpdateSupervisor {
                interrupted: present.owed,
            },
            reason: format!("supervisord does not know {}", names.join(", ")),
        });
    }

    for program in desired.programs.keys() {
        let Some(service) = services.get(program.name()) else {
            continue;
        };
        match (service.state, program) {
            (ServiceState::StoppedByOperator, _) if !present.owed => notes.push(format!(
                "{name} was stopped by hand and stays so; `supervisorctl start {name}` ends that",
                name = program.name()
            )),
            (ServiceState::Down | ServiceState::StoppedByOperator, _) => actions.push(Action {
                kind: ActionKind::Start(*program),
                reason: format!("it should run and does not ({})", service.detail),
            }),
            (ServiceState::Up, Program::Nginx) if !heard(Reader::Nginx) => actions.push(Action {
                kind: ActionKind::ReloadNginx,
                reason: cause("nginx.conf"),
            }),
            (ServiceState::Up, Program::Headscale) if present.owed || meaning_changed(files) => {
                actions.push(Action {
                    kind: ActionKind::RestartHeadscale,
                    reason: cause("headscale's configuration"),
                });
            }
            (ServiceState::Up, _) => {}
        }
    }
}

fn touched(files: &[FileChange], reader: Reader) -> bool {
    files.iter().any(|change| change.reader == reader)
}

/// Whether Headscale would read anything else: comments, order and the way of quoting mean nothing to it. A file
/// that is no YAML to us may be some to Headscale.
fn meaning_changed(files: &[FileChange]) -> bool {
    let meaning = |bytes: &Option<Vec<u8>>| -> Option<serde_json::Value> {
        serde_saphyr::from_slice(bytes.as_deref()?).ok()
    };
    let mut files = files.iter().filter(|change| change.reader == Reader::Headscale);
    files.any(|change| match (meaning(&change.before), meaning(&change.after)) {
        (Some(before), Some(after)) => before != after,
        _ => true,
    })
}

fn listener_reason(before: &ListenerSettings, after: &ListenerSettings) -> String {
    let mut what = Vec::new();
    let (old, new) = (&before.mesh, &after.mesh);
    if old.client_listen != new.client_listen {
        what.push("mesh.client_listen moved");
    }
    if old.auth_listen != new.auth_listen {
        what.push("mesh.auth_listen moved");
    }
    match (&old.front, &new.front) {
        (None, Some(_)) => what.push("the daemon becomes the front"),
        (Some(_), None) => what.push("nginx becomes the front"),
        (Some(old), Some(new)) => {
            if old.http_listen != new.http_listen {
                what.push("mesh.http_listen moved");
            }
            match (old.https_listen, new.https_listen) {
                (old, new) if old == new => {}
                (None, Some(_)) => what.push("the certificate is there"),
                _ => what.push("mesh.https_listen moved"),
            }
            if old.routes != new.routes {
                what.push("backends changed");
            }
        }
        (None, None) => {}
    }
    if old.gateway != new.gateway {
        what.push("the gateway domain changed");
    }
    if old.agent != new.agent {
        what.push("the guest agent's address changed");
    }
    if old.backends != new.backends {
        what.push("backends or who may call them changed");
    }
    if old.tcp_backends != new.tcp_backends {
        what.push("TCP backends changed");
    }
    if old.forwards != new.forwards {
        what.push("forwards changed");
    }
    match (&before.api, &after.api) {
        (None, Some(_)) => what.push("the VPC API is wanted"),
        (Some(_), None) => what.push("the VPC API is no longer wanted"),
        (Some(old), Some(new)) if old.listen != new.listen => what.push("server.api_listen moved"),
        (Some(old), Some(new)) if old != new => what.push("settings of the VPC API changed"),
        _ => {}
    }
    match (before.metrics, after.metrics) {
        (None, Some(_)) => what.push("metrics are wanted"),
        (Some(_), None) => what.push("metrics are no longer wanted"),
        (Some(old), Some(new)) if old != new => what.push("metrics.listen moved"),
        _ => {}
    }
    match (&before.page, &after.page) {
        (None, Some(_)) => what.push("the status page is wanted"),
        (Some(_), None) => what.push("the status page is no longer wanted"),
        (Some(old), Some(new)) if old.listen != new.listen => what.push("status.listen moved"),
        (Some(old), Some(new)) if old != new => what.push("status.names changed"),
        _ => {}
    }
    if old.access_log != new.access_log {
        what.push("mesh.access_log changed");
    }
    if what.is_empty() {
        what.push("a time limit changed");
    }
    what.join(", ")
}

#[cfg(test)]
mod tests;
