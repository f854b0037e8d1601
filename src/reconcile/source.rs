//! Where the configuration comes from, what it said last, and what to serve when it cannot be read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::apply::{Machine, generation};
use crate::desired::EFFECTIVE;
use crate::paths::StateDir;
use crate::spec::{self, ConfigText, Loaded, ReadError, Spec};

/// An emptied file is often a file that is about to be written: it is believed after this long.
const EMPTIED: Duration = Duration::from_secs(1);

/// The file (or none) and the environment.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    seen: Option<Seen>,
    /// When the file was first found empty after it had not been.
    emptied: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Seen {
    digest: String,
    empty: bool,
    result: Result<Arc<Spec>, String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("environment"),
        }
    }
}

impl Source {
    pub fn new(path: Option<PathBuf>, env: BTreeMap<String, String>) -> Self {
        Self {
            path,
            env,
            seen: None,
            emptied: None,
        }
    }

    /// Reads and parses, without remembering anything.
    pub fn load(&self) -> Result<Loaded, String> {
        let text = self.read().map_err(|error| error.to_string())?;
        spec::load(text.as_ref(), &self.env).map_err(|problems| problems.render(false).trim_end().to_owned())
    }

    fn read(&self) -> Result<Option<ConfigText>, ReadError> {
        self.path.as_deref().map(spec::read).transpose()
    }

    /// Folder of template overrides: `templates` beside the file.
    pub fn templates(&self) -> Option<PathBuf> {
        Some(self.path.as_deref()?.parent()?.join("templates"))
    }

    /// Digest of what was last read.
    pub(super) fn digest(&self) -> &str {
        self.seen.as_ref().map_or("", |seen| &seen.digest)
    }

    /// When a doubtful file should be looked at again although nothing was heard.
    pub(super) fn look_again(&self) -> Option<Instant> {
        self.emptied.map(|since| since + EMPTIED)
    }

    /// What the file and the environment say now. An unchanged text is not parsed again.
    pub(super) fn now(&mut self) -> Result<Arc<Spec>, String> {
        let text = match self.read() {
            Ok(text) => text,
            Err(error) => {
                let message = error.to_string();
                self.remember(digest(message.as_bytes()), false, Err(message.clone()));
                return Err(message);
            }
        };
        let empty = text.as_ref().is_some_and(|text| text.text.trim().is_empty());
        if let Some(seen) = &self.seen
            && empty
            && !seen.empty
            && self.emptied.get_or_insert_with(Instant::now).elapsed() < EMPTIED
        {
            return seen.result.clone();
        }
        self.emptied = None;
        let hash = text.as_ref().map_or("environment", |text| &text.hash).to_owned();
        if let Some(seen) = self.seen.as_ref().filter(|seen| seen.digest == hash) {
            return seen.result.clone();
        }
        let result = match spec::load(text.as_ref(), &self.env) {
            Ok(loaded) => {
                for warning in loaded.warnings.iter() {
                    tracing::warn!("{}", warning.message);
                }
                Ok(Arc::new(loaded.spec))
            }
            Err(problems) => Err(problems.render(false).trim_end().to_owned()),
        };
        self.remember(hash, empty, result.clone());
        result
    }

    fn remember(&mut self, digest: String, empty: bool, result: Result<Arc<Spec>, String>) {
        self.seen = Some(Seen {
            digest,
            empty,
            result,
        });
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What to start with: what the configuration says, else what served last.
pub(super) fn open<M: Machine>(
    source: &mut Source,
    machine: &M,
    state: &StateDir,
) -> Result<Arc<Spec>, String> {
    source
        .now()
        .or_else(|error| last_good(machine, state).ok_or(error))
}

/// The effective settings of the live generation.
pub fn last_good<M: Machine>(machine: &M, state: &StateDir) -> Option<Arc<Spec>> {
    let number = generation::current(machine, state).ok().flatten()?;
    let path = generation::dir(state, number).join(EFFECTIVE);
    let bytes = machine.read(&path).ok()?;
    let text = ConfigText::from_bytes(Path::new(&path), bytes).ok()?;
    spec::load(Some(&text), &BTreeMap::new())
        .ok()
        .map(|loaded| Arc::new(loaded.spec))
}
