//! What is owed: written before `current` moves, removed once the new state is proven.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::generation::{self, DiskError, doing};
use super::machine::Machine;
use crate::paths::StateDir;
use crate::plan::{Service, Socket};

/// An apply that has begun and has not been proven.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The last generation that was proven to serve.
    pub from: Option<u32>,
    /// The generation that is being made live.
    pub to: u32,
    /// `to` is an earlier generation that serves again, so it stays even when that fails.
    #[serde(default)]
    pub kept: bool,
    /// `to` has failed and `from` is being restored.
    pub rolling_back: bool,
    /// Generations before `to` that were never proven either.
    #[serde(default)]
    pub failed: Vec<u32>,
    /// Sockets of generations before `to`: nginx may have them open until `to` is proven.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held: BTreeSet<Socket>,
    /// Programs that were told to end so that they are started anew, and when those had been started: what is found
    /// stopped otherwise was stopped by an operator. `None`: nobody knows.
    #[serde(default)]
    pub ended: Option<BTreeMap<String, SystemTime>>,
    pub cause: String,
}

fn path(state: &StateDir) -> PathBuf {
    state.run().join("journal.json")
}

/// Puts new bytes in the place of a file, durably: whoever reads it finds the old ones or the new ones.
pub fn replace<M: Machine>(machine: &M, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let (new, folder) = (path.with_extension("tmp"), path.parent().unwrap_or(path));
    machine.remove(&new).map_err(doing("removing", &new))?;
    let written = machine
        .write_new(&new, 0o600, bytes)
        .and_then(|()| machine.sync(&new))
        .map_err(doing("writing", &new))
        .and_then(|()| machine.rename(&new, path).map_err(doing("renaming to", path)));
    if written.is_err() {
        // A full disk needs the room.
        let _ = machine.remove(&new);
    }
    written?;
    machine.sync(folder).map_err(doing("syncing", folder))
}

impl Journal {
    /// The unfinished apply, if there is one. A damaged journal still says that something is owed.
    /// One that cannot be read now is no answer: what is owed must not be forgotten.
    pub fn read<M: Machine>(machine: &M, state: &StateDir) -> Result<Option<Self>, DiskError> {
        let path = path(state);
        let bytes = match machine.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(doing("reading", &path)(error)),
        };
        if let Ok(journal) = serde_json::from_slice(&bytes) {
            return Ok(Some(journal));
        }
        let current = generation::current(machine, state).map_err(doing("reading", &state.current()))?;
        Ok(current.map(|current| Self {
            from: None,
            to: current,
            kept: true,
            rolling_back: false,
            failed: Vec::new(),
            held: BTreeSet::new(),
            ended: None,
            cause: "a damaged journal".into(),
        }))
    }

    /// Whether a program that was started then, and is found stopped, was stopped by what is unfinished.
    pub fn has_ended(&self, program: &str, started: Option<SystemTime>) -> bool {
        let Some(ended) = &self.ended else { return true };
        started.is_some() && ended.get(program).copied() == started
    }

    /// A program that this has stopped is one that should run.
    pub(super) fn claim(&self, services: &mut BTreeMap<String, Service>) {
        for (_, service) in services
            .iter_mut()
            .filter(|(name, it)| self.has_ended(name, it.started))
        {
            service.is_ours();
        }
    }

    /// The generations that came to nothing, so that nobody goes back to them.
    pub(super) fn never_proven(&self) -> impl Iterator<Item = u32> {
        let to = (!self.kept).then_some(self.to);
        to.into_iter().chain(self.failed.iter().copied())
    }

    pub(super) fn write<M: Machine>(&self, machine: &M, state: &StateDir) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec(self).expect("plain data serialises");
        replace(machine, &path(state), &bytes)
    }

    pub(super) fn clear<M: Machine>(machine: &M, state: &StateDir) -> Result<(), DiskError> {
        let (path, run) = (path(state), state.run());
        machine.remove(&path).map_err(doing("removing", &path))?;
        machine.sync(&run).map_err(doing("syncing", &run))
    }
}
