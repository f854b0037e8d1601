//! What the kernel is told of this process, and with it of every program below it.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A crash is no reason to write keys to a disk: memory holds the TLS key, and that of the programs we start holds theirs.
///
/// One byte, not none: to a handler that `kernel.core_pattern` names, the kernel gives the memory whatever the limit is,
/// except when it is 1. No core fits into one byte, so that holds for files, too.
pub(super) fn no_core_files() {
    // It fails where the limit is 0 already, which nobody but root can raise.
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}

/// No core of this process, whatever the limits are, and nobody but root looks into its memory or its environment.
pub(super) fn keep_memory_private() {
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "other programs of this user can look into this one");
    }
}

/// nginx and the daemon keep a descriptor for each connection: they, and everything below supervisord, may have as many
/// as the container allows.
pub(super) fn open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
