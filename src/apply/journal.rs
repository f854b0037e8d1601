//! What is owed: written before `current` moves, removed once the new state is proven.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::generation::{self, DiskError, doing};
use super::machine::Machine;
use crate::paths::StateDir;

/// An apply that has begun and has not been proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The last generation that was proven to serve.
    pub from: Option<u32>,
    /// The generation that is being made live.
    pub to: u32,
    /// `to` has failed and `from` is being restored.
    pub rolling_back: bool,
    pub cause: String,
}

fn path(state: &StateDir) -> PathBuf {
    state.run().join("journal.json")
}

/// Where it is written before it counts.
pub(super) fn new_path(state: &StateDir) -> PathBuf {
    path(state).with_extension("tmp")
}

impl Journal {
    /// The unfinished apply, if there is one. A damaged journal still says that something is owed.
    pub fn read<M: Machine>(machine: &M, state: &StateDir) -> Option<Self> {
        let bytes = machine.read(&path(state)).ok()?;
        serde_json::from_slice(&bytes).ok().or_else(|| {
            let current = generation::current(machine, state).ok().flatten()?;
            Some(Self {
                from: None,
                to: current,
                rolling_back: false,
                cause: "a damaged journal".into(),
            })
        })
    }

    pub(super) fn write<M: Machine>(&self, machine: &M, state: &StateDir) -> Result<(), DiskError> {
        let (path, run, new) = (path(state), state.run(), new_path(state));
        machine.remove(&new).map_err(doing("removing", &new))?;
        let bytes = serde_json::to_vec(self).expect("plain data serialises");
        machine
            .write_new(&new, 0o600, &bytes)
            .map_err(doing("writing", &new))?;
        machine.rename(&new, &path).map_err(doing("renaming to", &path))?;
        machine.sync_dir(&run).map_err(doing("syncing", &run))
    }

    pub(super) fn clear<M: Machine>(machine: &M, state: &StateDir) -> Result<(), DiskError> {
        let (path, run) = (path(state), state.run());
        machine.remove(&path).map_err(doing("removing", &path))?;
        machine.sync_dir(&run).map_err(doing("syncing", &run))
    }
}
