//! Certificates on disk: `<state>/identity/000001/{key.pem, chain.pem, ca.pem}` and the link `current`.
//!
//! A folder is complete before it has its number, and a number is never used again. A stop at any step
//! leaves `current` at the old or at the new certificate, complete; what is left over is cleared later.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls_pki_types::PrivateKeyDer;

use super::Identity;
use super::check::{CheckError, Checked, check};
use crate::names::InstanceId;
use crate::paths::StateDir;

pub(super) const CURRENT: &str = "current";
const KEY: &str = "key.pem";
const CHAIN: &str = "chain.pem";
const ROOT: &str = "ca.pem";

/// The largest file that is read; a chain has less than 10 KB.
const MAX_FILE: u64 = 1 << 20;

/// A certificate on disk.
#[derive(Debug)]
pub struct Stored {
    pub identity: Identity,
    /// When it was stored: the beginning of its life here.
    pub obtained: SystemTime,
}

/// Why a certificate could not be stored or read back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the stored certificate in {} cannot be used: {source}", dir.display())]
    Unusable { dir: PathBuf, source: CheckError },
}

/// Stores a certificate and makes it the current one. It is on disk for good when this returns.
///
/// Blocks for a few fsyncs.
pub fn store(state: &StateDir, new: Checked, instance_id: Option<InstanceId>) -> Result<Stored, StoreError> {
    store_in_steps(state, new, instance_id, &mut |_| Ok(()))
}

/// Takes each step of storing. In tests `before` stops at one of them, as a kill would: nothing is tidied up.
struct Steps<'a> {
    before: &'a mut dyn FnMut(&Path) -> io::Result<()>,
}

impl Steps<'_> {
    fn take<T>(
        &mut self,
        doing: &'static str,
        path: &Path,
        act: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        (self.before)(path)
            .and_then(|()| act(path))
            .map_err(|source| StoreError::Io {
                doing,
                path: path.to_owned(),
                source,
            })
    }
}

fn store_in_steps(
    state: &StateDir,
    new: Checked,
    instance_id: Option<InstanceId>,
    before: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> Result<Stored, StoreError> {
    let mut steps = Steps { before };
    let home = state.identity();
    steps.take("make the folder", &home, make_private_dir)?;
    let name = format!(
        "{:06}",
        numbered(&home).last().map_or(1, |(number, _)| number + 1)
    );
    let (dir, staged) = (home.join(&name), home.join(format!("{name}.tmp")));
    steps.take("clear", &staged, remove)?;
    steps.take("make the folder", &staged, |path| {
        DirBuilder::new().mode(0o700).create(path)
    })?;
    for (file, content) in [
        (KEY, pem(key_label(&new.key), [new.key.secret_der()])),
        (
            CHAIN,
            pem("CERTIFICATE", new.chain.iter().map(|der| der.as_ref())),
        ),
        (ROOT, pem("CERTIFICATE", [new.root.as_ref()])),
    ] {
        let path = staged.join(file);
        // Private from its first moment, whatever the umask.
        let open = |path: &Path| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        };
        let mut file = steps.take("create", &path, open)?;
        steps.take("write", &path, |_| file.write_all(content.as_bytes()))?;
        steps.take("sync", &path, |_| file.sync_all())?;
    }
    steps.take("sync", &staged, sync)?;
    steps.take("rename", &staged, |path| fs::rename(path, &dir))?;
    steps.take("sync", &home, sync)?;
    let link = home.join("current.tmp");
    steps.take("clear", &link, remove)?;
    steps.take("make the link", &link, |path| symlink(&name, path))?;
    steps.take("switch", &home.join(CURRENT), |path| fs::rename(&link, path))?;
    steps.take("sync", &home, sync)?;
    Ok(Stored {
        identity: identity(dir, new, instance_id),
        obtained: SystemTime::now(),
    })
}

/// The current certificate, checked as if it were new; `None` when there is none yet. Writes nothing.
///
/// # Errors
/// `Unusable` when there is one that fails a check, for example because it expired meanwhile.
pub fn load(
    state: &StateDir,
    instance_id: Option<InstanceId>,
    now: SystemTime,
) -> Result<Option<Stored>, StoreError> {
    let home = state.identity();
    let dir = match fs::read_link(home.join(CURRENT)) {
        Ok(name) => home.join(name),
        // Stopped before the first link was made: the newest complete one.
        Err(_) => match numbered(&home).pop() {
            Some((_, dir)) => dir,
            None => return Ok(None),
        },
    };
    let read = |name: &str| {
        let path = dir.join(name);
        read_limited(&path).map_err(|source| StoreError::Io {
            doing: "read",
            path,
            source,
        })
    };
    let (key, chain, obtained) = match read(KEY) {
        Ok((key, obtained)) => (key, format!("{}{}", read(CHAIN)?.0, read(ROOT)?.0), obtained),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match check(&key, &chain, None, now) {
        Ok(checked) => Ok(Some(Stored {
            identity: identity(dir, checked, instance_id),
            obtained,
        })),
        Err(source) => Err(StoreError::Unusable { dir, source }),
    }
}

/// The complete folders with their numbers, oldest first.
pub(super) fn numbered(home: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let digits = name
                .to_str()
                .filter(|name| name.len() >= 6 && name.bytes().all(|b| b.is_ascii_digit()));
            Some((digits?.parse().ok()?, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found
}

fn identity(dir: PathBuf, checked: Checked, instance_id: Option<InstanceId>) -> Identity {
    let Checked {
        key,
        chain,
        root,
        app_id,
        not_after,
    } = checked;
    Identity {
        dir,
        key,
        chain,
        root,
        app_id,
        instance_id,
        not_after,
    }
}

fn read_limited(path: &Path) -> io::Result<(String, SystemTime)> {
    let file = File::open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok((text, modified))
}

fn pem<'a>(label: &str, ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    ders.into_iter()
        .map(|der| pem::encode_config(&pem::Pem::new(label, der), config))
        .collect()
}

fn key_label(key: &PrivateKeyDer<'_>) -> &'static str {
    match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    }
}

/// A file, link or folder; what is not there is removed already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A folder that only this user may enter. Folders above it are made so that others may pass: nginx's workers
/// serve files from the same state directory.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::dev::{LeafRequest, Pki};
    use crate::names::AppId;
    use std::os::unix::fs::PermissionsExt;

    fn checked(pki: &Pki) -> Checked {
        let issued = pki
            .issue(&AppId::from_bytes([7; 20]), &LeafRequest::both())
            .unwrap();
        check(
            &issued.key_pem,
            &issued.chain_pems.concat(),
            None,
            SystemTime::now(),
        )
        .unwrap()
    }

    fn leaf(checked: &Checked) -> Vec<u8> {
        checked.chain[0].to_vec()
    }

    fn current(state: &StateDir) -> Option<(PathBuf, Vec<u8>)> {
        let stored = load(state, None, SystemTime::now()).unwrap()?;
        Some((stored.identity.dir, stored.identity.chain[0].to_vec()))
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::new(home.path());
        assert!(current(&state).is_none());
        let pki = Pki::new().unwrap();
        for number in ["000001", "000002"] {
            let new = checked(&pki);
            let leaf = leaf(&new);
            let stored = store(&state, new, None).unwrap();
            assert_eq!(stored.identity.dir, state.identity().join(number));
            assert_eq!(current(&state).unwrap(), (stored.identity.dir, leaf));
            assert_eq!(stored.identity.app_id, Some(AppId::from_bytes([7; 20])));
        }
        let chain = fs::read_to_string(state.identity().join("000002/chain.pem")).unwrap();
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn a_stop_at_any_step_leaves_the_old_or_the_new_one_and_the_next_succeeds() {
        let pki = Pki::new().unwrap();
        for had_old in [false, true] {
            for stop_at in 0.. {
                let home = tempfile::tempdir().unwrap();
                let state = StateDir::new(home.path());
                let (old, new, next) = (checked(&pki), checked(&pki), checked(&pki));
                let allowed = [had_old.then(|| leaf(&old)), Some(leaf(&new))];
                let next_leaf = leaf(&next);
                if had_old {
                    store(&state, old, None).unwrap();
                }
                let mut step = 0;
                let result = store_in_steps(&state, new, None, &mut |_| {
                    step += 1;
                    assert_private(&state.identity());
                    if step > stop_at {
                        Err(io::Error::other("killed"))
                    } else {
                        Ok(())
                    }
                });
                assert_private(&state.identity());
                let found = current(&state).map(|(_, leaf)| leaf);
                assert!(allowed.contains(&found), "stopped at step {stop_at}");

                store(&state, next, None).unwrap();
                assert_eq!(current(&state).unwrap().1, next_leaf);
                if result.is_ok() {
                    assert!(stop_at > 15, "{stop_at} steps");
                    break;
                }
            }
        }
    }

    /// Nothing below is readable by anybody else, at this moment.
    fn assert_private(dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let about = entry.metadata().unwrap();
            assert!(
                about.is_symlink() || about.permissions().mode() & 0o077 == 0,
                "{:?}",
                entry.path()
            );
            if about.is_dir() {
                assert_private(&entry.path());
            }
        }
    }

    #[test]
    fn a_damaged_one_is_reported() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::new(home.path());
        let pki = Pki::new().unwrap();
        let stored = store(&state, checked(&pki), None).unwrap();
        let long_after = SystemTime::now() + std::time::Duration::from_secs(11 * 365 * 86_400);
        let error = load(&state, None, long_after).unwrap_err().to_string();
        assert!(error.contains("expired"), "{error}");
        fs::write(stored.identity.dir.join(CHAIN), "junk").unwrap();
        assert!(matches!(
            load(&state, None, SystemTime::now()),
            Err(StoreError::Unusable { .. })
        ));
    }
}
