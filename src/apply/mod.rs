//! The only place that changes the machine.
//!
//! A generation is staged beside the live one, checked by its consumers, made complete, switched to by one
//! rename, acted on, and proven by what the listeners answer. Until it is proven a journal says what is owed,
//! so that a kill at any point leaves the old or the new generation, and no reload forgotten.

mod built_in;
pub mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod generation;
pub mod journal;
mod machine;
mod probe;
mod real;
mod roll_back;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::desired::{Desired, ListenerSettings, NGINX, Probe, Program, Reader};
use crate::paths::StateDir;
use crate::plan::{self, ActionKind, Listeners, Plan, Present, Service, ServiceState};
pub use built_in::Backends;
pub use generation::DiskError;
use journal::Journal;
pub use journal::replace;
pub use machine::Machine;
pub use real::{Own, Real, has_ended};
use roll_back::{roll_back, stopped};
use switch::{discard, last_good, switch_over};
pub use switch::{in_use, recover};

/// How long a program that is just starting may take to show that it has read its file.
const HEARD: Duration = Duration::from_secs(1);

/// How often ports are asked for that nginx is about to give up.
const TAKE_OVER: Duration = Duration::from_millis(20);

/// What one apply needs besides the desired state.
#[derive(Debug, Clone)]
pub struct Order {
    /// Why, for the manifest and the history.
    pub cause: String,
    /// Generations to keep.
    pub keep: usize,
    /// Generations that are kept beyond that number: somebody may want to go back to them.
    pub needed: Vec<u32>,
    /// The generation to go back to: when it has just the desired files, it is used as it is.
    pub again: Option<u32>,
    /// How long the new state may take to prove itself.
    pub probe_timeout: Duration,
}

/// It is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub generation: u32,
    /// False: the machine already was that way.
    pub changed: bool,
    /// False: supervisord is not there yet, so nothing could be proven; the journal remembers.
    pub proven: bool,
    pub took: Took,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Took {
    /// Rendering to disk, checks, switch.
    pub stage_ms: u64,
    /// The consumers' own checkers, which are part of `stage_ms`.
    pub check_ms: u64,
    /// Actions and proof: the programs' own share.
    pub act_ms: u64,
}

/// It is not live, and what serves now.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct ApplyError {
    #[source]
    pub failure: Failure,
    pub left: Left,
}

/// What a failed apply left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// It failed before anything live was touched.
    Untouched,
    /// The previous generation serves again, proven.
    RolledBackTo(u32),
    /// There is no earlier generation to go back to, or going back failed too.
    Unproven(String),
}

/// What went wrong, in the consumer's own words where there are any.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the state directory could not be changed: {0}")]
    Disk(#[from] DiskError),
    #[error("{} refuses its new configuration:\n{words}", consumer(*.reader))]
    Refused { reader: Reader, words: String },
    #[error("{key} = \"{addr}\" cannot be used: {why}")]
    PortUnusable {
        key: String,
        addr: std::net::SocketAddr,
        why: String,
    },
    #[error("{name} runs now and would be lost: {why}")]
    Lost { name: &'static str, why: String },
    #[error("{target}: {verb} failed: {words}")]
    Action {
        target: &'static str,
        verb: &'static str,
        words: String,
    },
    #[error("the new configuration did not come to serve: {0}")]
    Unproven(String),
}

fn consumer(reader: Reader) -> &'static str {
    match reader {
        Reader::Daemon => "dstack-vpc",
        Reader::Nginx => "nginx",
        Reader::Headscale => "headscale",
        Reader::Supervisord => "supervisord",
    }
}

/// Looks at the disk and the supervisor; changes nothing.
pub async fn look<M: Machine>(machine: &M, state: &StateDir) -> Result<Present, DiskError> {
    let generation =
        generation::current(machine, state).map_err(generation::doing("reading", &state.current()))?;
    let found = generation.map(|number| generation::files_and_modes(machine, state, number));
    let (mut files, mut modes) = (BTreeMap::new(), BTreeMap::new());
    for (path, (bytes, mode)) in found.into_iter().flatten() {
        modes.insert(path.clone(), mode);
        files.insert(path, bytes);
    }
    let journal = Journal::read(machine, state)?;
    let mut held: BTreeSet<_> = journal
        .iter()
        .flat_map(|journal| &journal.held)
        .copied()
        .collect();
    if let Some(number) = generation
        && !files.contains_key(NGINX)
    {
        held.extend(generation::nginx_sockets(machine, state, number, &files));
    }
    let mut services = machine.services().await;
    if let Some(journal) = &journal {
        // An apply that was cut off may have stopped it.
        let all = services.iter_mut().flatten();
        for (_, service) in all.filter(|(name, _)| journal.may_have_stopped(name)) {
            service.is_ours();
        }
    }
    Ok(Present {
        generation,
        files,
        modes,
        headscale_read: None,
        listeners: Listeners::NotOurs,
        services,
        owed: journal.is_some(),
        held,
    })
}

/// Makes the desired state live and proves it, or restores the one before.
pub async fn apply<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    present: &Present,
    plan: &Plan,
    order: &Order,
) -> Result<Applied, ApplyError> {
    let started = Instant::now();
    let untouched = |failure| ApplyError {
        failure,
        left: Left::Untouched,
    };
    let provable = present.services.is_some();
    if let Some(generation) = present.generation
        && plan.is_empty()
        && !(present.owed && provable)
    {
        let took = Took::default();
        return Ok(Applied {
            generation,
            changed: false,
            proven: !present.owed,
            took,
        });
    }
    nothing_is_lost(desired, present).map_err(untouched)?;
    ports_are_free(machine, state, desired, present).map_err(untouched)?;

    let before = Journal::read(machine, state).map_err(|error| untouched(error.into()))?;
    // Who may call, and the like: only our own listeners are concerned, which need nothing from the disk. It is not made
    // to wait for that, and taken back when the disk fails. After a kill vpc.toml says it again.
    let at_once = match &present.listeners {
        Listeners::Open(served) if only_listeners(plan) && !present.owed => Some(served),
        _ => None,
    };
    if let Some(served) = at_once
        && let Err(failure) = act(machine, ActionKind::UpdateListeners, &desired.listeners).await
    {
        // A part of it may be done.
        let left = match act(machine, ActionKind::UpdateListeners, served).await {
            Ok(()) => Left::Untouched,
            Err(second) => Left::Unproven(format!("going back failed too: {second}")),
        };
        return Err(ApplyError { failure, left });
    }
    let good = last_good(present.generation, before.as_ref());
    let mut check = Duration::ZERO;
    let number = match present.generation {
        Some(current) if plan.files.is_empty() => {
            if let Some(mut owed) = before.filter(|owed| provable && owed.stopped.is_none()) {
                owed.stopped = Some(stopped(present));
                owed.write(machine, state)
                    .map_err(|error| untouched(error.into()))?;
            }
            current
        }
        _ => {
            let was = (present, before);
            let switched = switch_over(machine, state, desired, plan, was, order, &mut check).await;
            let taken_back = match (&switched, at_once) {
                (Err(_), Some(served)) => act(machine, ActionKind::UpdateListeners, served).await.is_ok(),
                _ => true,
            };
            switched.map_err(|failure| match generation::current(machine, state) {
                Ok(now) if now == present.generation && taken_back => untouched(failure),
                _ => ApplyError {
                    failure,
                    left: Left::Unproven("what was live before could not be switched back to".into()),
                },
            })?
        }
    };
    let staged = Instant::now();

    let goal = Goal {
        listeners: &desired.listeners,
        probes: &desired.probes,
        tag: &desired.tag,
    };
    let done = match at_once {
        Some(_) => Some(ActionKind::UpdateListeners),
        None if present.owed && plan.files.is_empty() => already_heard(machine, plan, &goal, HEARD).await,
        None => None,
    };
    let mut result = carry_out(machine, plan, present, &goal, order, done).await;
    if provable && result.is_ok() {
        result = finish(machine, state, number, order).map_err(Failure::Disk);
    }
    let took = Took {
        stage_ms: millis(staged - started),
        check_ms: millis(check),
        act_ms: millis(staged.elapsed()),
    };
    let failure = match result {
        Ok(()) => {
            if provable {
                machine.settle().await;
            }
            return Ok(Applied {
                generation: number,
                changed: true,
                proven: provable,
                took,
            });
        }
        Err(failure) => failure,
    };
    let left = match good {
        Some(good) if good == number => Left::Untouched,
        Some(good) => match roll_back(machine, state, present, &desired.listeners, number, good, order).await
        {
            Ok(()) => Left::RolledBackTo(good),
            Err(second) => Left::Unproven(format!("going back to generation {good} failed too: {second}")),
        },
        None => Left::Unproven("there is no earlier generation to go back to".into()),
    };
    machine.settle().await;
    Err(ApplyError { failure, left })
}

/// Removes the oldest generations after another one was proven. Nobody has to wait for that to be told what is live.
pub fn prune<M: Machine>(machine: &M, state: &StateDir, keep: usize, needed: &[u32], applied: &Applied) {
    if applied.changed && applied.proven {
        // Only room is at stake here: the next one tries again.
        let _ = generation::prune(machine, state, keep, &[needed, &[applied.generation]].concat());
    }
}

/// It is proven: what was tried before and came to nothing goes, and then nothing is owed.
fn finish<M: Machine>(machine: &M, state: &StateDir, number: u32, order: &Order) -> Result<(), DiskError> {
    if let Some(journal) = Journal::read(machine, state)? {
        let used = journal
            .from
            .into_iter()
            .chain([number])
            .chain(order.needed.clone());
        discard(machine, state, &journal, &used.collect::<Vec<_>>())?;
    }
    Journal::clear(machine, state)
}

/// What is to be live in the end.
struct Goal<'a> {
    listeners: &'a ListenerSettings,
    probes: &'a [Probe],
    tag: &'a str,
}

/// nginx may have read its file before we could see it, as at the start of the container: then it need not be told
/// again. What it need not be told.
async fn already_heard<M: Machine>(
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What runs is never given up because a file or a fact is gone, nor for something that is not there.
fn nothing_is_lost(desired: &Desired, present: &Present) -> Result<(), Failure> {
    for (program, why) in &desired.missing {
        let name = program.name();
        if *program == Program::Nginx
            && let Listeners::Open(open) = &present.listeners
            && open.mesh.front.is_some()
        {
            let (name, why) = ("the built-in front", why.clone());
            return Err(Failure::Lost { name, why });
        }
        let service = present.services.as_ref().and_then(|services| services.get(name));
        if service.is_some_and(|service| service.state == ServiceState::Up) {
            let why = why.clone();
            return Err(Failure::Lost { name, why });
        }
    }
    Ok(())
}

/// nginx itself ignores a taken port at reload, so it is asked for here, before anything changes.
fn ports_are_free<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    present: &Present,
) -> Result<(), Failure> {
    let nginx = nginx_pid(present);
    // The daemon has a supervisord, which may only be late to say that nginx runs.
    let unheard = present.services.is_none() && present.listeners != Listeners::NotOurs;
    let held: Vec<Probe> = match present.generation {
        Some(number) if nginx.is_some() || unheard => generation::manifest(machine, state, number)
            .map(|m| m.probes)
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    let ours = match &present.listeners {
        Listeners::Open(open) => open.addresses(),
        Listeners::Closed | Listeners::NotOurs => Vec::new(),
    };
    let fronts = desired
        .probes
        .iter()
        .filter(|probe| probe.of == Program::Nginx)
        .filter(|probe| !ours.iter().any(|ours| is_left_to(ours, probe)))
        .filter(|probe| !held.iter().any(|old| old.listen == probe.listen))
        .map(|probe| (probe.key.as_str(), probe.listen));
    // Before there is a daemon, its ports are looked at as well; later it opens them itself.
    let no_daemon = present.listeners == Listeners::NotOurs && present.services.is_none();
    let built_in = desired.listeners.addresses();
    for (key, addr) in fronts.chain(built_in.into_iter().filter(|_| no_daemon)) {
        if let Some(why) = machine.why_not(addr, nginx) {
            let key = key.to_owned();
            return Err(Failure::PortUnusable { key, addr, why });
        }
    }
    Ok(())
}

/// A listener of the daemon as the front: it closes before nginx opens the same port, at this address or one that overlaps.
fn is_left_to((key, addr): &(&str, SocketAddr), probe: &Probe) -> bool {
    ["mesh.http_listen", "mesh.https_listen"].contains(key) && addr.port() == probe.listen.port()
}

fn nginx_pid(present: &Present) -> Option<i32> {
    let service = present.services.as_ref()?.get(Program::Nginx.name())?;
    service.pid.filter(|_| service.state == ServiceState::Up)
}

/// Whether nobody but this process has to hear of it.
fn only_listeners(plan: &Plan) -> bool {
    let mut actions = plan.actions.iter();
    !plan.actions.is_empty() && actions.all(|action| action.kind == ActionKind::UpdateListeners)
}

async fn act<M: Machine>(
    machine: &M,
    action: ActionKind,
    listeners: &ListenerSettings,
) -> Result<(), Failure> {
    let (target, verb, _) = plan::words(action);
    let acted = machine.act(action, listeners).await;
    acted.map_err(|words| Failure::Action { target, verb, words })
}

/// `done` has been done already.
async fn carry_out<M: Machine>(
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
