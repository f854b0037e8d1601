//! The steps on disk: from a desired state to the generation that `current` points to, and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::generation::{self, DiskError, doing};
use super::journal::Journal;
use super::machine::Machine;
use super::{Failure, Order};
use crate::desired::{Desired, Reader};
use crate::paths::StateDir;
use crate::plan::{Plan, Present};

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
    let Some(journal) = Journal::read(machine, state)? else {
        return Ok(false);
    };
    let current = generation::current(machine, state).map_err(doing("reading", &state.current()))?;
    match (journal.rolling_back, journal.from, current) {
        (true, Some(from), _) => {
            generation::switch(machine, state, from)?;
            discard(machine, state, &journal, &[from])?;
            Ok(true)
        }
        (_, _, Some(current)) if current == journal.to => Ok(true),
        // It ended before the switch: the new generation was never seen by anyone. What serves may be one that was not
        // proven either.
        (_, from, Some(current)) if from != Some(current) => {
            let still = Journal {
                to: current,
                kept: !journal.failed.contains(&current),
                rolling_back: false,
                ..journal.clone()
            };
            discard(machine, state, &journal, &[current])?;
            still.write(machine, state)?;
            Ok(true)
        }
        (_, _, current) => {
            discard(machine, state, &journal, current.as_slice())?;
            Journal::clear(machine, state)?;
            Ok(false)
        }
    }
}

/// The generations that nginx may be using while an apply is unfinished, or has just begun to be put right.
pub fn in_use<M: Machine>(machine: &M, state: &StateDir) -> Vec<u32> {
    let journal = Journal::read(machine, state).ok().flatten();
    let current = generation::current(machine, state).ok().flatten();
    let unfinished = journal
        .into_iter()
        .flat_map(|journal| journal.from.into_iter().chain([journal.to]));
    current.into_iter().chain(unfinished).collect()
}

/// Removes the generations that never came to serve, except those in use.
pub(super) fn discard<M: Machine>(
    machine: &M,
    state: &StateDir,
    journal: &Journal,
    in_use: &[u32],
) -> Result<(), DiskError> {
    let unused = journal.never_proven().filter(|number| !in_use.contains(number));
    generation::remove(machine, state, unused.collect())
}

/// Brings a generation with the desired files to completion, or finds the one there is, and points `current` at it;
/// returns its number. On an error nothing live has changed: what is `present` is live, and owed is what the journal
/// of `before` says.
pub(super) async fn switch_over<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    plan: &Plan,
    (present, before): (&Present, Option<Journal>),
    order: &Order,
    check: &mut Duration,
) -> Result<u32, Failure> {
    let was = present.generation;
    let good = last_good(was, before.as_ref());
    let ours = (state.generations(), 0o755);
    let folders = desired
        .folders
        .iter()
        .map(|(dir, mode)| (dir.clone(), *mode))
        .chain([ours]);
    for (dir, mode) in folders {
        machine.make_dir(&dir, mode).map_err(doing("creating", &dir))?;
    }
    if was.is_none() {
        // They may be new: a journal in a folder without a name is none.
        let root = state.root();
        machine.sync(root).map_err(doing("syncing", root))?;
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
    let used = [good, again].into_iter().flatten().chain(order.needed.clone());
    let used: Vec<u32> = used.collect();
    let failed = before.iter().flat_map(Journal::never_proven);
    let open = was.map(|number| generation::nginx_sockets(machine, state, number, &present.files));
    let held = open.into_iter().flatten().chain(present.held.iter().copied());
    let journal = Journal {
        from: good,
        to: number,
        kept: again.is_some(),
        rolling_back: false,
        failed: failed.filter(|number| !used.contains(number)).collect(),
        held: held.collect(),
        ended: match &before {
            Some(before) => before.ended.clone(),
            None => Some(BTreeMap::new()),
        },
        cause: order.cause.clone(),
    };
    // The journal first: a generation that has its number and never comes to serve is found and removed.
    let switched = journal
        .write(machine, state)
        .and_then(|()| match again {
            Some(_) => Ok(()),
            None => generation::complete(machine, state, number),
        })
        .and_then(|()| generation::switch(machine, state, number));
    if let Err(error) = switched {
        undo_switch(machine, state, &journal, was, before)?;
        return Err(error.into());
    }
    Ok(number)
}

/// Writes a generation and has it checked; returns the number that it is to have. On an error nothing of it is left.
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
        let written = generation::stage(machine, &staged, desired, &order.cause)?;
        // Who looks at it need not wait for the disk.
        let checking = check_all(machine, &staged, plan, check);
        let (checked, synced) = tokio::join!(checking, async { generation::sync(machine, &written) });
        checked?;
        Ok(synced?)
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

/// The switch failed half-way: the link moved or it did not, and may not be durable. Back to what was, and to what was
/// owed then; what cannot be undone now is undone at the next start, because the journal stays.
fn undo_switch<M: Machine>(
    machine: &M,
    state: &StateDir,
    journal: &Journal,
    was: Option<u32>,
    before: Option<Journal>,
) -> Result<(), DiskError> {
    let current = state.current();
    let moved = generation::current(machine, state).map_err(doing("reading", &current))? == Some(journal.to);
    match (moved, was) {
        (true, Some(was)) => generation::switch(machine, state, was)?,
        (true, None) => machine.remove(&current).map_err(doing("removing", &current))?,
        (false, _) => {}
    }
    if !journal.kept {
        let staged = generation::staged(state, journal.to);
        machine.remove(&staged).map_err(doing("removing", &staged))?;
        generation::remove(machine, state, vec![journal.to])?;
    }
    match before {
        Some(before) => before.write(machine, state),
        None => Journal::clear(machine, state),
    }
}

/// The generation that was proven last: one that something is still owed for is never one to go back to.
pub(super) fn last_good(was: Option<u32>, owed: Option<&Journal>) -> Option<u32> {
    owed.map_or(was, |journal| journal.from)
}
