//! Waiting for a descriptor of the kernel's to become readable.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `None`: it cannot be waited for, as when no more descriptors can be registered.
pub(super) fn readable(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor has to stay open, and the same, while it is registered. `AsyncFd` owns the `OwnedFd`,
    // nobody else has it, and it is deregistered before it is closed.
    #[allow(unsafe_code)]
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    fd.ok()
}
