//! The format of the state directory: a number in `<state>/format.json`, read before anything else is and written before
//! anything else is written.
//!
//! Whoever changes what lies on disk so that an earlier version would misread it raises [`FORMAT`] and adds the step that
//! leads there. The number is that of the new format from before the first step until for ever, so an earlier version never
//! works on a directory that is half-way. `format.json` itself keeps its name and these fields in every format to come.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::generation::{DiskError, doing};
use super::journal::replace;
use super::machine::Machine;
use crate::paths::StateDir;

/// What this version writes. A directory without a number is of format 0, or empty.
pub const FORMAT: u32 = 1;

/// Makes format `n + 1` of format `n`, durably. A kill may have ended it at any point before: it is then taken again, on
/// whatever it left.
pub type Step<M> = fn(&M, &StateDir) -> Result<(), DiskError>;

/// At place `n` what leads from format `n` to the next.
fn steps<M: Machine>() -> [Step<M>; FORMAT as usize] {
    [
        // Format 1 is format 0 with its number.
        |_, _| Ok(()),
    ]
}

/// What stands in the file. Fields may be added, none removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// Who brought the directory to that format, e.g. dstack-vpc 0.1.0.
    written_by: String,
    /// The step from this format has begun, and has not been seen to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<u32>,
}

/// Why this version leaves a state directory alone.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(
        "{} is in format {format}, written by {by}; this is {}, which knows formats up to {known}. Nothing was touched.\n\
         Start {by} again, or a later one. To go back to this one, put the copy of the directory in its place that was made \
         before the upgrade, or start with an empty one: --state-dir (docs/operations.md, \"Upgrading, and going back\")",
        dir.display(), ours()
    )]
    Newer {
        dir: PathBuf,
        format: u32,
        by: String,
        known: u32,
    },
    #[error(
        "{} does not tell which version wrote this state directory: {why}. Nothing was touched.\n\
         If no later version than {} ever ran on it, remove that file; else start the later one",
        path.display(), ours()
    )]
    Unreadable { path: PathBuf, why: String },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Where the file is.
pub fn path(state: &StateDir) -> PathBuf {
    state.root().join("format.json")
}

/// The format that the directory is in, or is being brought to, if this version knows it. Writes nothing.
pub fn check<M: Machine>(machine: &M, state: &StateDir) -> Result<u32, FormatError> {
    check_against(machine, state, FORMAT)
}

/// [`check`], as a version that knows the formats up to `known`.
pub fn check_against<M: Machine>(machine: &M, state: &StateDir, known: u32) -> Result<u32, FormatError> {
    Ok(read(machine, state, known)?.map_or(0, |record| record.format))
}

/// Brings the directory to our format, whatever earlier one it is in. Nothing is written where it is there already.
pub fn take_over<M: Machine>(machine: &M, state: &StateDir) -> Result<(), FormatError> {
    take_over_by(machine, state, &steps())
}

/// [`take_over`] by these steps, of which there are as many as formats.
pub fn take_over_by<M: Machine>(machine: &M, state: &StateDir, steps: &[Step<M>]) -> Result<(), FormatError> {
    let ours = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let found = read(machine, state, ours)?;
    let begin = found.map_or(0, |record| record.from.unwrap_or(record.format));
    for (from, step) in (0..ours).zip(steps).skip(begin as usize) {
        write(machine, state, from + 1, Some(from))?;
        step(machine, state)?;
    }
    if begin < ours {
        write(machine, state, ours, None)?;
    }
    Ok(())
}

fn read<M: Machine>(machine: &M, state: &StateDir, known: u32) -> Result<Option<Record>, FormatError> {
    let path = path(state);
    let bytes = match machine.read(&path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(doing("reading", &path)(e).into()),
    };
    let record = understand(&bytes, &path)?;
    if record.format > known {
        return Err(FormatError::Newer {
            dir: state.root().to_owned(),
            format: record.format,
            by: record.written_by,
            known,
        });
    }
    Ok(Some(record))
}

/// It is written whole or not at all, so what makes no sense is not a kill's doing.
fn understand(bytes: &[u8], path: &Path) -> Result<Record, FormatError> {
    let unreadable = |why: String| FormatError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let record: Record = serde_json::from_slice(bytes).map_err(|e| unreadable(e.to_string()))?;
    match record.from {
        Some(from) if from.checked_add(1) != Some(record.format) => Err(unreadable(format!(
            "no step leads from format {from} to {}",
            record.format
        ))),
        _ => Ok(record),
    }
}

fn write<M: Machine>(machine: &M, state: &StateDir, format: u32, from: Option<u32>) -> Result<(), DiskError> {
    let record = Record {
        format,
        written_by: ours(),
        from,
    };
    let bytes = serde_json::to_vec(&record).expect("plain data serialises");
    replace(machine, &path(state), &bytes)
}

fn ours() -> String {
    format!("dstack-vpc {}", env!("CARGO_PKG_VERSION"))
}
