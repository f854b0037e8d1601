//! The steps on disk: from a desired state to the generation that `current` points to, and back.

use std::time::{Duration, Instant};

use super::generation::{self, DiskError, doing};
use super::journal::{self, Journal};
use super::machine::Machine;
use super::{Failure, Order};
use crate::desired::{Desired, Reader};
use crate::paths::StateDir;
use crate::plan::Plan;

/// Puts right what an interrupted apply left: returns whether anything is still owed to the programs.
pub fn recover<M: Machine>(machine: &M, state: &StateDir) -> Result<bool, DiskError> {
    machine.end_orphans();
    let generations = state.generations();
    for name in machine
        .list(&generations)
        .map_err(doing("listing", &generations))?
    {
        if name.ends_with(".tmp") {
            let path = generations.join(name);
            machine.remove(&path).map_err(doing("removing", &path))?;
        }
    }
    // Links and journals that were written and not yet renamed are of no use to anybody.
    for path in [generation::new_link(state), journal::new_path(state)] {
        machine.remove(&path).map_err(doing("removing", &path))?;
    }
    let Some(journal) = Journal::read(machine, state) else {
        return Ok(false);
    };
    let current = generation::current(machine, state).ok().flatten();
    match (journal.rolling_back, journal.from) {
        (true, Some(from)) => {
            generation::switch(machine, state, from)?;
            remove_generation(machine, state, journal.to)?;
            Ok(true)
        }
        _ if current == Some(journal.to) => Ok(true),
        // It ended before the switch: the new generation was never seen by anyone.
        _ => {
            remove_generation(machine, state, journal.to)?;
            Journal::clear(machine, state)?;
            Ok(false)
        }
    }
}

pub(super) fn remove_generation<M: Machine>(
    machine: &M,
    state: &StateDir,
    number: u32,
) -> Result<(), DiskError> {
    let path = generation::dir(state, number);
    machine.remove(&path).map_err(doing("removing", &path))
}

/// Stages, checks, completes and switches; returns the new number. On an error nothing live has changed.
pub(super) async fn stage_and_switch<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    plan: &Plan,
    good: Option<u32>,
    order: &Order,
    check: &mut Duration,
) -> Result<u32, Failure> {
    let ours = (state.generations(), 0o755);
    let folders = desired
        .folders
        .iter()
        .map(|(dir, mode)| (dir.clone(), *mode))
        .chain([ours]);
    for (dir, mode) in folders {
        machine.make_dir(&dir, mode).map_err(doing("creating", &dir))?;
    }
    let numbers = generation::all(machine, state).map_err(doing("listing", &state.generations()))?;
    let number = numbers.last().map_or(1, |last| last + 1);
    let staged = generation::staged(state, number);
    if let Err(failure) = bring_to_completion(machine, state, number, desired, plan, order, check).await {
        // A full disk needs the room.
        let _ = machine.remove(&staged);
        return Err(failure);
    }
    let journal = Journal {
        from: good,
        to: number,
        rolling_back: false,
        cause: order.cause.clone(),
    };
    let switched = journal
        .write(machine, state)
        .and_then(|()| generation::switch(machine, state, number));
    if let Err(error) = switched {
        undo_switch(machine, state, number, good)?;
        return Err(error.into());
    }
    Ok(number)
}

/// Writes a generation, has it checked, and gives it its number.
async fn bring_to_completion<M: Machine>(
    machine: &M,
    state: &StateDir,
    number: u32,
    desired: &Desired,
    plan: &Plan,
    order: &Order,
    check: &mut Duration,
) -> Result<(), Failure> {
    let staged = generation::staged(state, number);
    generation::stage(machine, &staged, desired, &order.cause)?;
    let checking = Instant::now();
    for reader in [Reader::Nginx, Reader::Headscale, Reader::Supervisord] {
        let changed = plan.files.iter().any(|f| f.reader == reader && f.after.is_some());
        if changed && let Err(words) = machine.check(reader, &staged).await {
            return Err(Failure::Refused { reader, words });
        }
    }
    *check = checking.elapsed();
    Ok(generation::complete(machine, state, number, &staged)?)
}

/// The switch failed half-way: the link moved or it did not, and may not be durable. Back to before; what cannot be
/// undone now is undone at the next start, because the journal stays.
fn undo_switch<M: Machine>(
    machine: &M,
    state: &StateDir,
    number: u32,
    good: Option<u32>,
) -> Result<(), DiskError> {
    let current = state.current();
    let moved = generation::current(machine, state).map_err(doing("reading", &current))? == Some(number);
    match (moved, good) {
        (true, Some(good)) => generation::switch(machine, state, good)?,
        (true, None) => machine.remove(&current).map_err(doing("removing", &current))?,
        (false, _) => {}
    }
    Journal::clear(machine, state)?;
    remove_generation(machine, state, number)
}
