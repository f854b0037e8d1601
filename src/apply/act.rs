//! Carrying a plan out: each action in its order, and then the proof of whom it concerns.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::machine::Machine;
use super::preflight::nginx_pid;
use super::{Failure, Order};
use crate::desired::{ListenerSettings, Probe, Program};
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
    machine: &M,
    plan: &Plan,
    present: &Present,
    goal: &Goal<'_>,
    order: &Order,
    done: Option<ActionKind>,
) -> Result<(), Failure> {
    let due = || {
        let kinds = plan.actions.iter().map(|action| action.kind);
        kinds.filter(|kind| Some(*kind) != done)
    };
    let reload = due().any(|kind| kind == ActionKind::ReloadNginx);
    let old_workers = match nginx_pid(present) {
        Some(pid) if reload => machine.workers(pid),
        _ => Vec::new(),
    };
    let due: Vec<_> = due().collect();
    let gives_up_ports = |kind: &ActionKind| {
        matches!(
            kind,
            ActionKind::UpdateSupervisor { .. } | ActionKind::RestartNginx
        )
    };
    let handed_over = match due.last() {
        Some(ActionKind::UpdateListeners) => due.iter().rposition(gives_up_ports),
        _ => None,
    };
    for (at, kind) in due.iter().enumerate() {
        match handed_over {
            // nginx gives up its ports at once, and then takes its time to finish.
            Some(its) if its == at => take_over(machine, *kind, goal.listeners).await?,
            Some(_) if *kind == ActionKind::UpdateListeners => {}
            _ => act(machine, *kind, goal.listeners).await?,
        }
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

/// Has nginx give up ports, and opens the listeners that take them as soon as they are free.
async fn take_over<M: Machine>(
    machine: &M,
    update: ActionKind,
    listeners: &ListenerSettings,
) -> Result<(), Failure> {
    let open = || act(machine, ActionKind::UpdateListeners, listeners);
    if open().await.is_ok() {
        return act(machine, update, listeners).await;
    }
    let is_updated = AtomicBool::new(false);
    let updating = async {
        let updated = act(machine, update, listeners).await;
        is_updated.store(true, Ordering::Relaxed);
        updated
    };
    let opening = async {
        loop {
            let is_last = is_updated.load(Ordering::Relaxed);
            match open().await {
                Err(_) if !is_last => sleep(TAKE_OVER).await,
                opened => return opened,
            }
        }
    };
    let (updated, opened) = tokio::join!(updating, opening);
    updated.and(opened)
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
                | ActionKind::UpdateSupervisor { .. }
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
    told(|kind| matches!(kind, ActionKind::UpdateSupervisor { .. })) && {
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
