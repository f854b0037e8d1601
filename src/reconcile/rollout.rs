//! What an operator decided over the file: which generation is held, and which is not confirmed yet. It lies on disk,
//! so that it holds over restarts.

use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::source::Wish;
use crate::apply::{DiskError, Machine, generation, replace};
use crate::desired::{EFFECTIVE, OVERRIDES};
use crate::paths::StateDir;

/// Decisions that outlive the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    pub held: Option<Held>,
    pub unconfirmed: Option<Unconfirmed>,
    /// The generation that was confirmed last.
    pub confirmed: Option<u32>,
}

/// An earlier generation's settings serve instead of the file's, until the file changes or `apply` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub generation: u32,
    pub since: Timestamp,
    /// Who asked for it, or what happened.
    pub why: String,
    /// Digest of the input that is not applied.
    pub input: String,
}

/// What is live goes back unless it is confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    pub back_to: u32,
    pub until: Timestamp,
}

/// Why a generation cannot be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoWayBack {
    #[error("there is no generation {wanted}; {}", name_all(.kept))]
    NotKept { wanted: u32, kept: Vec<u32> },
    #[error("no earlier generation with other settings is kept; {}", name_all(.kept))]
    NoEarlier { kept: Vec<u32> },
    #[error("generation {number} was edited after it was made ({files}); {}", name_all(.kept))]
    Edited {
        number: u32,
        files: String,
        kept: Vec<u32>,
    },
    #[error("the settings of generation {0} cannot be read; choose another")]
    Unreadable(u32),
}

fn name_all(numbers: &[u32]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
    format!("kept are {}", numbers.join(", "))
}

fn path(state: &StateDir) -> PathBuf {
    state.run().join("rollout.json")
}

impl Rollout {
    /// What was decided before; nothing where that cannot be read.
    pub fn read<M: Machine>(machine: &M, state: &StateDir) -> Self {
        let Ok(bytes) = machine.read(&path(state)) else {
            return Self::default();
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "{} is damaged: no generation is held", path(state).display());
            Self::default()
        })
    }

    /// Makes the decisions outlive this process.
    pub fn write<M: Machine>(&self, machine: &M, state: &StateDir) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec(self).expect("plain data serialises");
        replace(machine, &path(state), &bytes)
    }

    /// Generations that must not be removed.
    pub fn needed(&self) -> Vec<u32> {
        let held = self.held.as_ref().map(|held| held.generation);
        let back_to = self.unconfirmed.as_ref().map(|it| it.back_to);
        held.into_iter().chain(back_to).collect()
    }

    /// From now on `generation` serves instead of `input`.
    pub(super) fn hold(&mut self, generation: u32, why: String, input: String) {
        let since = Timestamp::now();
        self.held = Some(Held {
            generation,
            since,
            why,
            input,
        });
        self.unconfirmed = None;
    }

    /// The earlier settings that serve instead of `wish`, if it is so decided: because a generation is held, or because
    /// nobody confirmed the live one in time. A wish that has changed ends the hold; one that cannot be read (`None`)
    /// does not. `text` is the digest of the file.
    pub fn decide<M: Machine>(
        &mut self,
        machine: &M,
        state: &StateDir,
        text: &str,
        wish: Option<&Wish>,
    ) -> Option<Wish> {
        if self.held.is_none() && self.unconfirmed.is_none() {
            return None;
        }
        let input = wish.map(|wish| wish.input(text));
        self.expire(machine, state, input.clone().unwrap_or_default());
        let changed = |held: &mut Held| input.is_some_and(|input| input != held.input);
        if let Some(held) = self.held.take_if(changed) {
            tracing::info!(
                "the configuration has changed: generation {} is held no longer",
                held.generation
            );
        }
        let number = self.held.as_ref()?.generation;
        let settings = Wish::of_generation(machine, state, number);
        if settings.is_none() {
            tracing::error!("the settings of generation {number} cannot be read: it is held no longer");
            self.held = None;
        }
        settings
    }

    fn expire<M: Machine>(&mut self, machine: &M, state: &StateDir, input: String) {
        let Some(late) = self.unconfirmed.take_if(|it| it.until <= Timestamp::now()) else {
            return;
        };
        let current = generation::current(machine, state).ok().flatten();
        if let Some(current) = current.filter(|current| *current != late.back_to) {
            let why = format!("generation {current} was not confirmed in time");
            tracing::warn!("{why}: back to generation {}", late.back_to);
            self.hold(late.back_to, why, input);
        }
    }
}

/// Until `patience` from now.
pub(super) fn until(patience: Duration) -> Timestamp {
    let patience = SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_add(patience).unwrap_or(Timestamp::MAX)
}

/// The generation to go back to: the one that is wanted, or the last before `current` that had other settings.
pub(super) fn way_back<M: Machine>(
    machine: &M,
    state: &StateDir,
    wanted: Option<u32>,
    current: Option<u32>,
) -> Result<u32, NoWayBack> {
    let kept = generation::all(machine, state).unwrap_or_default();
    let edited = |number: u32| {
        let files = generation::files(machine, state, number);
        generation::manifest(machine, state, number).map_or(vec!["manifest.json".to_owned()], |manifest| {
            manifest.drifted(&files)
        })
    };
    let number = match wanted {
        Some(number) if !kept.contains(&number) => {
            return Err(NoWayBack::NotKept { wanted: number, kept });
        }
        Some(number) => number,
        None => {
            let current = current.unwrap_or(u32::MAX);
            let now = settings(machine, state, current);
            let other = |number: &&u32| {
                **number < current && edited(**number).is_empty() && settings(machine, state, **number) != now
            };
            match kept.iter().rev().find(other) {
                Some(number) => *number,
                None => return Err(NoWayBack::NoEarlier { kept }),
            }
        }
    };
    let files = edited(number);
    if !files.is_empty() {
        let files = files.join(", ");
        return Err(NoWayBack::Edited { number, files, kept });
    }
    match Wish::of_generation(machine, state, number) {
        Some(_) => Ok(number),
        None => Err(NoWayBack::Unreadable(number)),
    }
}

/// What a generation was made from, by the digests of its manifest.
fn settings<M: Machine>(machine: &M, state: &StateDir, number: u32) -> Vec<(String, String)> {
    let files = generation::manifest(machine, state, number).map(|manifest| manifest.files);
    let ours = |path: &str| path == EFFECTIVE || path.starts_with(OVERRIDES);
    let files = files.unwrap_or_default().into_iter();
    files.filter(|(path, _)| ours(path)).collect()
}
