//! Standard output of the commands.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::Context;

/// The reader of standard output has gone, as `| head` does; there is nothing more to do.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub(super) struct ReaderGone;

/// Writes `text` to standard output, without its colours where nobody would see them.
///
/// # Errors
/// [`ReaderGone`], or what keeps standard output from being written, such as a full disk.
pub(super) fn print(text: impl Display) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => written.context("standard output cannot be written"),
    }
}

/// [`print`], and ends the line.
///
/// # Errors
/// As [`print`].
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}
