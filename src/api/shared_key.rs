//! The key that every node of the VPN gets: 64 random bytes, made once and never lost.
//!
//! The registry has it, so that several servers share one; `secrets/shared_key` is the copy that seeds a new registry.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;

use crate::identity::make_private_dir;
use crate::paths::StateDir;
use crate::registry::Registry;

const BYTES: usize = 64;
/// In base64, with a line's end and room to see that it is longer.
const MAX_FILE: u64 = 128;

/// The key in base64, as nodes get it. Never shown otherwise.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SharedKey(String);

impl SharedKey {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

/// Why there is no shared key, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedKeyError {
    #[error("{path} cannot be {what}: {source}")]
    File {
        path: String,
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "{path} does not hold {BYTES} bytes in base64; put the key back that it held, or remove the file: then the \
         registry's key is used, or a new one is made"
    )]
    Damaged { path: String },
    #[error("the shared key in the registry is damaged: it has {0} bytes instead of {BYTES}")]
    DamagedInRegistry(usize),
    #[error("the shared key cannot be kept in the registry: {0}")]
    Registry(String),
    #[error("the system gives no random bytes")]
    NoRandom,
}

/// The key that is there, else a new one, which is in the registry and on disk when this returns.
pub(super) async fn establish(
    registry: &dyn Registry,
    state: &StateDir,
) -> Result<SharedKey, SharedKeyError> {
    let path = state.secrets().join("shared_key");
    let kept = read(&path)?;
    let candidate = match &kept {
        Some(kept) => kept.to_vec(),
        None => random()?.to_vec(),
    };
    let key = registry
        .shared_secret(candidate)
        .await
        .map_err(|error| SharedKeyError::Registry(error.to_string()))?;
    if key.len() != BYTES {
        return Err(SharedKeyError::DamagedInRegistry(key.len()));
    }
    let text = STANDARD.encode(&key);
    if kept.is_none_or(|kept| *key != kept) {
        if kept.is_some() {
            tracing::warn!(path = %path.display(), "the shared key of the registry replaces another one");
        }
        write(&path, &text).map_err(|source| SharedKeyError::File {
            path: path.display().to_string(),
            what: "written",
            source,
        })?;
    }
    Ok(SharedKey(text))
}

/// `None` when there is no file; one that is damaged is never taken for that.
fn read(path: &Path) -> Result<Option<[u8; BYTES]>, SharedKeyError> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    let path = || path.display().to_string();
    match opened {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(SharedKeyError::File {
                path: path(),
                what: "read",
                source,
            });
        }
    }
    STANDARD
        .decode(bytes.trim_ascii_end())
        .ok()
        .and_then(|key| key.try_into().ok())
        .map(Some)
        .ok_or_else(|| SharedKeyError::Damaged { path: path() })
}

/// Whole or not at all, 0600 from its first moment.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    make_private_dir(dir)?;
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

fn random() -> Result<[u8; BYTES], SharedKeyError> {
    let mut bytes = [0; BYTES];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| SharedKeyError::NoRandom)?;
    Ok(bytes)
}
