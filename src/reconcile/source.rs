//! Where the configuration comes from, what it said last, and what to serve when it cannot be read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::apply::{Machine, generation};
use crate::desired::{EFFECTIVE, OVERRIDES, RenderError, Templates};
use crate::paths::StateDir;
use crate::spec::{self, ConfigText, Loaded, ReadError, Spec};

/// An emptied file is often a file that is about to be written: it is believed after this long.
const EMPTIED: Duration = Duration::from_secs(1);

/// Settings, and the folder of the templates that override ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    pub loaded: Arc<Loaded>,
    pub overrides: Option<PathBuf>,
}

impl Wish {
    /// What a generation was made from. `None`: it is not there, or damaged.
    pub fn of_generation<M: Machine>(machine: &M, state: &StateDir, number: u32) -> Option<Self> {
        let dir = generation::dir(state, number);
        let path = dir.join(EFFECTIVE);
        let text = ConfigText::from_bytes(&path, machine.read(&path).ok()?).ok()?;
        let loaded = spec::load(Some(&text), &BTreeMap::new()).ok()?;
        Some(Self {
            loaded: Arc::new(loaded),
            overrides: Some(dir.join(OVERRIDES)),
        })
    }

    /// What the live generation was made from.
    pub fn last_good<M: Machine>(machine: &M, state: &StateDir) -> Option<Self> {
        let number = generation::current(machine, state).ok().flatten()?;
        Self::of_generation(machine, state, number)
    }

    pub fn spec(&self) -> &Spec {
        &self.loaded.spec
    }

    /// What it is rendered by.
    pub fn templates(&self) -> Result<Templates, RenderError> {
        match &self.overrides {
            Some(dir) => Templates::with_overrides(dir),
            None => Ok(Templates::builtin()),
        }
    }

    /// Stands for everything that is wished: it changes with the file, the environment and the templates. `text` is
    /// the digest of the file, so that a comment is a change as well.
    pub(super) fn input(&self, text: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(text);
        hash.update(self.spec().to_toml());
        match self.templates() {
            Ok(templates) => {
                for (name, text) in templates.overrides() {
                    hash.update(name);
                    hash.update(Sha256::digest(text));
                }
            }
            Err(error) => hash.update(error.to_string()),
        }
        hex::encode(hash.finalize())
    }
}

/// The file (or none) and the environment.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    seen: Option<Seen>,
    /// The newest version of what is wished, and how many there were.
    version: (String, u64),
    /// When the file was first found empty after it had not been.
    emptied: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Seen {
    digest: String,
    empty: bool,
    result: Result<Arc<Loaded>, String>,
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
            version: Default::default(),
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

    /// These settings, with the templates beside the file.
    pub fn wish(&self, loaded: Arc<Loaded>) -> Wish {
        let overrides = self.templates();
        Wish { loaded, overrides }
    }

    /// Folder of template overrides: `templates` beside the file.
    pub fn templates(&self) -> Option<PathBuf> {
        Some(self.path.as_deref()?.parent()?.join("templates"))
    }

    /// Stands for the file and the templates as they are now; the environment stays as it is while a program runs.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        match self.read() {
            Ok(text) => hash.update(text.map(|text| text.hash).unwrap_or_default()),
            Err(error) => hash.update(error.to_string()),
        }
        let folder = self.templates().and_then(|dir| std::fs::read_dir(dir).ok());
        let mut paths: Vec<_> = folder
            .into_iter()
            .flatten()
            .flatten()
            .map(|it| it.path())
            .collect();
        paths.sort_unstable();
        for path in paths {
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update(Sha256::digest(std::fs::read(&path).unwrap_or_default()));
        }
        hex::encode(hash.finalize())
    }

    /// Counts the version that is there now. Before it is read, so that what changes meanwhile is a later one.
    pub(super) fn count(&mut self) {
        let now = self.fingerprint();
        if self.version.0 != now {
            self.version = (now, self.version.1 + 1);
        }
    }

    /// The version that was counted last.
    pub(super) fn version(&self) -> (String, u64) {
        self.version.clone()
    }

    /// Digest of the text that was last read.
    pub fn digest(&self) -> &str {
        self.seen.as_ref().map_or("", |seen| &seen.digest)
    }

    /// When a doubtful file should be looked at again although nothing was heard.
    pub(super) fn look_again(&self) -> Option<Instant> {
        self.emptied.map(|since| since + EMPTIED)
    }

    /// What the file and the environment say now. An unchanged text is not parsed again.
    pub fn now(&mut self) -> Result<Arc<Loaded>, String> {
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
                Ok(Arc::new(loaded))
            }
            Err(problems) => Err(problems.render(false).trim_end().to_owned()),
        };
        self.remember(hash, empty, result.clone());
        result
    }

    fn remember(&mut self, digest: String, empty: bool, result: Result<Arc<Loaded>, String>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_emptied_file_is_believed_after_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpc.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let mut source = Source::new(Some(path.clone()), BTreeMap::new());
        let mut keep = || {
            let loaded = source.now().unwrap();
            (loaded.spec.reconcile.keep, source.look_again().is_some())
        };
        write("[reconcile]\nkeep = 7\n");
        assert_eq!(keep(), (7, false));
        // It is about to be written.
        write("");
        assert_eq!(keep(), (7, true));
        write("[reconcile]\nkeep = 8\n");
        assert_eq!(keep(), (8, false));
        // Nothing comes.
        write(" \n");
        assert_eq!(keep(), (8, true));
        tokio::time::advance(EMPTIED / 2).await;
        assert_eq!(keep(), (8, true));
        tokio::time::advance(EMPTIED / 2).await;
        let default = Spec::default().reconcile.keep;
        assert_eq!(keep(), (default, false));
    }
}
