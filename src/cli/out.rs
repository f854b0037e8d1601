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

/// `text` in lines of at most `width` columns where its words allow it, each after `indent` spaces.
pub(super) fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut used = 0;
        for word in line.split_whitespace() {
            let length = word.chars().count();
            if used > 0 && indent + used + 1 + length > width {
                out.push('\n');
                used = 0;
            }
            match used {
                0 => out += &" ".repeat(indent),
                _ => out.push(' '),
            }
            out += word;
            used += length + usize::from(used > 0);
        }
        out.push('\n');
    }
    out
}

/// [`print`], and ends the line.
///
/// # Errors
/// As [`print`].
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}
