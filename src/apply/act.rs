//! Carrying a plan out: each action in its order, and then the proof of whom it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::journal::Journal;
use super::machine::Machine;
use super::preflight::nginx_pid;
use super::{Failure, Order};
use crate::desired::{ListenerSettings, Probe, Program};
use crate::paths::StateDir;
use crate::plan::{self, ActionKind, Plan, Present, Service, ServiceState};

/// How long a program that is just starting may take to show that it has read its file.
pub(super) const HEARD: Duration = Duration::from_secs(1);

/// How often ports are asked for that nginx is about to give up.
const TAKE_OVER: Duration = Duration::from_millis(20);

/// What is to be live in the end.
pub(super) struct Goal<'a> {
    pub(super) listeners: &'a ListenerSettings,
    pub(super) probes: &'a [Probe],
    pub(super) tag: &'a str,
}

/// `done` has been done already.
pub(super) async fn carry_out<M: Machine>(
    (machine, state): (&M, &StateDir),
    plan: &Plan,
    present: &Present,
    goal: &Goal<'_>,
    order: &Order,
    done: Option<ActionKind>,
) -> Result<(), Failure> {
    let kinds = plan.actions.iter().map(|action| action.kind);
    let due: Vec<_> = kinds.filter(|kind| Some(*kind) != done).collect();
    let old_workers = match nginx_pid(present) {
        Some(pid) if due.contains(&ActionKind::ReloadNginx) => machine.workers(pid),
        _ => Vec::new(),
    };
    let gives_up_ports =
        |kind: &ActionKind| matches!(kind, ActionKind::UpdateSupervisor | ActionKind::RestartNginx);
    let tell = Tell {
        machine,
        state,
        listeners: goal.listeners,
    };
    match due.split_last() {
        // nginx gives up its ports at once, and then takes its time to finish.
        Some((ActionKind::UpdateListeners, programs)) if programs.iter().any(gives_up_ports) => {
            tell.take_over(programs).await?;
        }
        _ => tell.all(&due).await?,
    }
    let (front, headscale) = (
        nginx_should_answer(plan, present),
        headscale_should_answer(machine, plan, present, goal).await,
    );
    if front || headscale {
        let due = |probe: &&Probe| if probe.has_tag() { front } else { headscale };
        let probes: Vec<_> = goal.probes.iter().filter(due).cloned().collect();
        machine
            .prove(&probes, goal.tag, &old_workers, order.probe_timeout)
            .await
            .map_err(Failure::Unproven)?;
    }
    Ok(())
}

pub(super) async fn act<M: Machine>(
    machine: &M,
    action: ActionKind,
    listeners: &ListenerSettings,
) -> Result<(), Failure> {
    let (target, verb, _) = plan::words(action);
    let acted = machine.act(action, listeners).await;
    acted.map_err(|words| Failure::Action { target, verb, words })
}

/// Whom the actions are told to, and what the daemon itself is to serve.
struct Tell<'a, M> {
    machine: &'a M,
    state: &'a StateDir,
    listeners: &'a ListenerSettings,
}

impl<M: Machine> Tell<'_, M> {
    /// One after the other, but for what a program need not be told because it has just been started: `current` leads to
    /// the new files by then.
    async fn all(&self, kinds: &[ActionKind]) -> Result<(), Failure> {
        let is_for_one = |kind: &ActionKind| program(*kind).is_some();
        let mut started = BTreeSet::new();
        for kind in kinds {
            if program(*kind).is_some_and(|program| started.contains(program.name())) {
                continue;
            }
            self.announce(*kind).await?;
            let may_start = *kind == ActionKind::UpdateSupervisor && kinds.iter().any(is_for_one);
            let before = if may_start {
                self.pids().await
            } else {
                BTreeMap::new()
            };
            act(self.machine, *kind, self.listeners).await?;
            if !before.is_empty() {
                let now = self.pids().await.into_iter();
                let other = now.filter(|(name, pid)| before.get(name).is_some_and(|former| former != pid));
                started.extend(other.map(|(name, _)| name));
            }
        }
        Ok(())
    }

    /// Has nginx give up ports, and opens the listeners that take them as soon as they are free.
    async fn take_over(&self, programs: &[ActionKind]) -> Result<(), Failure> {
        let open = || act(self.machine, ActionKind::UpdateListeners, self.listeners);
        if open().await.is_ok() {
            return self.all(programs).await;
        }
        let is_told = AtomicBool::new(false);
        let telling = async {
            let told = self.all(programs).await;
            is_told.store(true, Ordering::Relaxed);
            told
        };
        let opening = async {
            loop {
                let is_last = is_told.load(Ordering::Relaxed);
                match open().await {
                    Err(_) if !is_last => sleep(TAKE_OVER).await,
                    opened => return opened,
                }
            }
        };
        let (told, opened) = tokio::join!(telling, opening);
        told.and(opened)
    }

    /// Has the journal say what is about to be stopped: should we be killed before it runs again, that is how our own doing
    /// is told from an operator's.
    async fn announce(&self, kind: ActionKind) -> Result<(), Failure> {
        let (target, verb, _) = plan::words(kind);
        let ends = self.machine.ends(kind).await;
        let ends = ends.map_err(|words| Failure::Action { target, verb, words })?;
        if ends.is_empty() {
            return Ok(());
        }
        let mut journal = Journal::read(self.machine, self.state)?;
        if let Some(journal) = &mut journal
            && let Some(ended) = &mut journal.ended
        {
            ended.extend(ends);
            journal.write(self.machine, self.state)?;
        }
        Ok(())
    }

    async fn pids(&self) -> BTreeMap<String, i32> {
        let services = self.machine.services().await.unwrap_or_default();
        let pids = services.into_iter().map(|(name, it)| Some((name, it.pid?)));
        pids.flatten().collect()
    }
}

/// Whom alone an action is for, where that reads files when it is started.
fn program(kind: ActionKind) -> Option<Program> {
    match kind {
        ActionKind::ReloadNginx | ActionKind::RestartNginx => Some(Program::Nginx),
        ActionKind::RestartHeadscale => Some(Program::Headscale),
        ActionKind::UpdateListeners | ActionKind::UpdateSupervisor | ActionKind::Start(_) => None,
    }
}

/// A proof is due when nginx was told something, unless an operator holds it stopped.
fn nginx_should_answer(plan: &Plan, present: &Present) -> bool {
    let Some(services) = &present.services else {
        return false;
    };
    let held = services
        .get(Program::Nginx.name())
        .is_some_and(|s| s.state == ServiceState::StoppedByOperator);
    let told = plan.actions.iter().any(|action| {
        matches!(
            action.kind,
            ActionKind::ReloadNginx
                | ActionKind::RestartNginx
                | ActionKind::Start(Program::Nginx)
                | ActionKind::UpdateSupervisor
        )
    });
    told && !held
}

/// A proof is due when it was started anew.
async fn headscale_should_answer<M: Machine>(
    machine: &M,
    plan: &Plan,
    present: &Present,
    goal: &Goal<'_>,
) -> bool {
    if goal.probes.iter().all(Probe::has_tag) {
        return false;
    }
    let told = |kind: fn(&ActionKind) -> bool| plan.actions.iter().any(|action| kind(&action.kind));
    if told(|kind| {
        matches!(
            kind,
            ActionKind::RestartHeadscale | ActionKind::Start(Program::Headscale)
        )
    }) {
        return true;
    }
    // supervisord starts those anew whose section is another.
    let pid = |services: &Option<BTreeMap<String, Service>>| {
        let service = services.as_ref()?.get(Program::Headscale.name());
        service.and_then(|service| service.pid)
    };
    told(|kind| matches!(kind, ActionKind::UpdateSupervisor)) && {
        let now = pid(&machine.services().await);
        now.is_some() && now != pid(&present.services)
    }
}

/// nginx may have read its file before we could see it, as at the start of the container: then it need not be told
/// again. What it need not be told.
pub(super) async fn already_heard<M: Machine>(
    machine: &M,
    plan: &Plan,
    goal: &Goal<'_>,
    within: Duration,
) -> Option<ActionKind> {
    let mut kinds = plan.actions.iter().map(|action| action.kind);
    let told = kinds.find(|kind| matches!(kind, ActionKind::ReloadNginx | ActionKind::RestartNginx))?;
    let fronts: Vec<_> = goal
        .probes
        .iter()
        .filter(|probe| probe.has_tag())
        .cloned()
        .collect();
    let proven = machine.prove(&fronts, goal.tag, &[], within).await;
    proven.is_ok().then_some(told)
}
