//! The steps on disk: from a desired state to the generation that `current` points to, and back.

use std::path::Path;
use std::time::{Duration, Instant};

use super::generation::{self, DiskError, doing};
use super::journal::Journal;
use super::machine::Machine;
use super::{Failure, Order};
use crate::desired::{Desired, Reader};
use crate::paths::StateDir;
use crate::plan::Plan;

/// Puts right what an interrupted apply left: returns whether anything is still owed to the programs.
pub fn recover<M: Machine>(machine: &M, state: &StateDir) -> Result<bool, DiskError> {
    machine.end_orphans();
    // What was written and not yet renamed is of no use to anybody.
    for folder in [state.root().to_owned(), state.generations(), state.run()] {
        let names = machine.list(&folder).map_err(doing("listing", &folder))?;
        for name in names.iter().filter(|name| name.ends_with(".tmp")) {
            let path = folder.join(name);
            machine.remove(&path).map_err(doing("removing", &path))?;
        }
    }
    let Some(journal) = Journal::read(machine, state) else {
        return Ok(false);
    };
    let current = generation::current(machine, state).ok().flatten();
    match (journal.rolling_back, journal.from) {
        (true, Some(from)) => {
            generation::switch(machine, state, from)?;
            discard(machine, state, &journal)?;
            Ok(true)
        }
        _ if current == Some(journal.to) => Ok(true),
        // It ended before the switch: the new generation was never seen by anyone.
        _ => {
            discard(machine, state, &journal)?;
            Journal::clear(machine, state)?;
            Ok(false)
        }
    }
}

/// Removes a generation that never came to serve.
pub(super) fn discard<M: Machine>(machine: &M, state: &StateDir, journal: &Journal) -> Result<(), DiskError> {
    if journal.kept {
        return Ok(());
    }
    let path = generation::dir(state, journal.to);
    machine.remove(&path).map_err(doing("removing", &path))
}

/// Brings a generation with the desired files to completion, or finds the one there is, and points `current` at it;
/// returns its number. On an error nothing live has changed.
pub(super) async fn switch_over<M: Machine>(
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
    let again = order
        .again
        .filter(|number| generation::is_just(machine, state, *number, desired));
    let number = match again {
        Some(number) => {
            check_all(machine, &generation::dir(state, number), plan, check).await?;
            number
        }
        None => new_generation(machine, state, desired, plan, order, check).await?,
    };
    let journal = Journal {
        from: good,
        to: number,
        kept: again.is_some(),
        rolling_back: false,
        cause: order.cause.clone(),
    };
    let switched = journal
        .write(machine, state)
        .and_then(|()| generation::switch(machine, state, number));
    if let Err(error) = switched {
        undo_switch(machine, state, &journal)?;
        return Err(error.into());
    }
    Ok(number)
}

/// Writes a generation, has it checked, and gives it its number. On an error nothing of it is left.
async fn new_generation<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    plan: &Plan,
    order: &Order,
    check: &mut Duration,
) -> Result<u32, Failure> {
    let numbers = generation::all(machine, state).map_err(doing("listing", &state.generations()))?;
    let number = numbers.last().map_or(1, |last| last + 1);
    let staged = generation::staged(state, number);
    let made = async {
        generation::stage(machine, &staged, desired, &order.cause)?;
        check_all(machine, &staged, plan, check).await?;
        Ok::<_, Failure>(generation::complete(machine, state, number, &staged)?)
    };
    if let Err(failure) = made.await {
        // A full disk needs the room.
        let _ = machine.remove(&staged);
        return Err(failure);
    }
    Ok(number)
}

/// Lets each program look at its new file, which lies in `dir`.
async fn check_all<M: Machine>(
    machine: &M,
    dir: &Path,
    plan: &Plan,
    check: &mut Duration,
) -> Result<(), Failure> {
    let checking = Instant::now();
    for reader in [Reader::Nginx, Reader::Headscale, Reader::Supervisord] {
        let changed = plan.files.iter().any(|f| f.reader == reader && f.after.is_some());
        if changed && let Err(words) = machine.check(reader, dir).await {
            return Err(Failure::Refused { reader, words });
        }
    }
    *check = checking.elapsed();
    Ok(())
}

/// The switch failed half-way: the link moved or it did not, and may not be durable. Back to before; what cannot be
/// undone now is undone at the next start, because the journal stays.
fn undo_switch<M: Machine>(machine: &M, state: &StateDir, journal: &Journal) -> Result<(), DiskError> {
    let current = state.current();
    let moved = generation::current(machine, state).map_err(doing("reading", &current))? == Some(journal.to);
    match (moved, journal.from) {
        (true, Some(good)) => generation::switch(machine, state, good)?,
        (true, None) => machine.remove(&current).map_err(doing("removing", &current))?,
        (false, _) => {}
    }
    Journal::clear(machine, state)?;
    discard(machine, state, journal)
}
