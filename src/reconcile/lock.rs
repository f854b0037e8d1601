//! One writer to a state directory: a locked file that holds its owner's pid. Who takes it finds the directory in the
//! format of this version, or is told why it cannot be.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

use crate::apply::Real;
use crate::apply::format::{self, FormatError};
use crate::paths::StateDir;

/// Held as long as the value lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "{dir} is in use by another dstack-vpc (pid {pid}); stop that one, or choose another --state-dir"
    )]
    Held { dir: PathBuf, pid: String },
    #[error("the state directory {dir} cannot be written: {source}; choose another with --state-dir")]
    State { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl Lock {
    /// Takes the lock at once or says who has it.
    pub fn take(state: &StateDir) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::State {
            dir: state.root().to_owned(),
            source,
        };
        let machine = Real::new(state, None);
        // A later version's directory is not even locked.
        format::check(&machine, state)?;
        std::fs::create_dir_all(state.run()).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(state.run().join("lock"))
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).map_err(failed)?;
                file.rewind().map_err(failed)?;
                write!(file, "{}", std::process::id()).map_err(failed)?;
                format::take_over(&machine, state)?;
                Ok(Self { _file: file })
            }
            Err((mut file, _)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                Err(LockError::Held {
                    dir: state.root().to_owned(),
                    pid,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let first = Lock::take(&state).unwrap();
        let error = Lock::take(&state).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(&state).unwrap();
    }
}
