//! The only place that changes the machine.
//!
//! A generation is staged beside the live one, checked by its consumers, made complete, switched to by one
//! rename, acted on, and proven by what the listeners answer. Until it is proven a journal says what is owed,
//! so that a kill at any point leaves the old or the new generation, and no reload forgotten.

mod act;
mod built_in;
mod exchange;
pub mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod generation;
pub mod journal;
mod machine;
mod preflight;
mod probe;
mod real;
mod roll_back;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::desired::{Desired, ListenerSettings, NGINX, Reader};
use crate::paths::StateDir;
use crate::plan::{ActionKind, Listeners, Plan, Present};
use act::{Goal, HEARD, act, already_heard, carry_out};
pub use built_in::Backends;
pub use exchange::has_ended;
pub use generation::DiskError;
use journal::Journal;
pub use journal::replace;
pub use machine::Machine;
use preflight::{nothing_is_lost, ports_are_free};
pub use real::{Own, Real};
use roll_back::roll_back;
use switch::{discard, last_good, switch_over};
pub use switch::{in_use, recover};

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
        services.iter_mut().for_each(|services| journal.claim(services));
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
    let good = last_good(present.generation, before.as_ref());
    let at_once = tell_at_once(machine, desired, present, plan).await?;
    let mut check = Duration::ZERO;
    let number = match present.generation {
        Some(current) if plan.files.is_empty() => current,
        _ => {
            let was = (present, before);
            let switched = switch_over(machine, state, desired, plan, was, order, &mut check).await;
            match switched {
                Ok(number) => number,
                Err(failure) => return Err(not_switched(machine, state, present, at_once, failure).await),
            }
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
    let mut result = carry_out((machine, state), plan, present, &goal, order, done).await;
    if provable && result.is_ok() {
        result = finish(machine, state, number, order).map_err(Failure::Disk);
    }
    let took = Took {
        stage_ms: millis(staged - started),
        check_ms: millis(check),
        act_ms: millis(staged.elapsed()),
    };
    if let Err(failure) = result {
        let left = take_back(machine, state, desired, present, number, good, order).await;
        machine.settle().await;
        return Err(ApplyError { failure, left });
    }
    if provable {
        machine.settle().await;
    }
    Ok(Applied {
        generation: number,
        changed: true,
        proven: provable,
        took,
    })
}

/// Removes the oldest generations after another one was proven. Nobody has to wait for that to be told what is live.
pub fn prune<M: Machine>(machine: &M, state: &StateDir, keep: usize, needed: &[u32], applied: &Applied) {
    if applied.changed && applied.proven {
        // Only room is at stake here: the next one tries again.
        let _ = generation::prune(machine, state, keep, &[needed, &[applied.generation]].concat());
    }
}

fn untouched(failure: Failure) -> ApplyError {
    ApplyError {
        failure,
        left: Left::Untouched,
    }
}

/// Who may call, and the like: only our own listeners are concerned, which need nothing from the disk. It is not made to
/// wait for that, and taken back when the disk fails. After a kill vpc.toml says it again. What they served before, where
/// that is so.
async fn tell_at_once<'p, M: Machine>(
    machine: &M,
    desired: &Desired,
    present: &'p Present,
    plan: &Plan,
) -> Result<Option<&'p ListenerSettings>, ApplyError> {
    let served: &ListenerSettings = match &present.listeners {
        Listeners::Open(served) if only_listeners(plan) && !present.owed => served,
        _ => return Ok(None),
    };
    let Err(failure) = act(machine, ActionKind::UpdateListeners, &desired.listeners).await else {
        return Ok(Some(served));
    };
    // A part of it may be done.
    let left = match act(machine, ActionKind::UpdateListeners, served).await {
        Ok(()) => Left::Untouched,
        Err(second) => Left::Unproven(format!("going back failed too: {second}")),
    };
    Err(ApplyError { failure, left })
}

/// The disk failed: what was told at once is taken back.
async fn not_switched<M: Machine>(
    machine: &M,
    state: &StateDir,
    present: &Present,
    at_once: Option<&ListenerSettings>,
    failure: Failure,
) -> ApplyError {
    let taken_back = match at_once {
        Some(served) => act(machine, ActionKind::UpdateListeners, served).await.is_ok(),
        None => true,
    };
    match generation::current(machine, state) {
        Ok(now) if now == present.generation && taken_back => untouched(failure),
        _ => ApplyError {
            failure,
            left: Left::Unproven("what was live before could not be switched back to".into()),
        },
    }
}

/// The new state did not prove itself: back to the last one that did.
async fn take_back<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    present: &Present,
    number: u32,
    good: Option<u32>,
    order: &Order,
) -> Left {
    match good {
        Some(good) if good == number => Left::Untouched,
        Some(good) => {
            let back = roll_back(machine, state, present, &desired.listeners, number, good, order);
            match back.await {
                Ok(()) => Left::RolledBackTo(good),
                Err(second) => {
                    Left::Unproven(format!("going back to generation {good} failed too: {second}"))
                }
            }
        }
        None => Left::Unproven("there is no earlier generation to go back to".into()),
    }
}

/// Whether nobody but this process has to hear of it.
fn only_listeners(plan: &Plan) -> bool {
    let mut actions = plan.actions.iter();
    !plan.actions.is_empty() && actions.all(|action| action.kind == ActionKind::UpdateListeners)
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
