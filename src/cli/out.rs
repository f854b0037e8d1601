//! What the commands write: the answer to standard output, the rest to standard error.

use std::cmp::Ordering;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;

/// The reader of standard output has gone, as `| head` does; there is nothing more to do.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub(super) struct ReaderGone;

/// Ctrl-C: somebody has seen enough.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// What there is room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) width: usize,
    pub(super) rows: usize,
}

impl Room {
    /// A terminal that does not say how large it is.
    pub(super) const USUAL: Self = Self { width: 80, rows: 24 };

    /// Of the terminal; `None`: standard output is none.
    pub(super) fn on_terminal() -> Option<Self> {
        let out = io::stdout();
        if !out.is_terminal() {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&out).ok();
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
        Some(size.map_or(Self::USUAL, |size| Self {
            width: size.ws_col.into(),
            rows: size.ws_row.into(),
        }))
    }
}

/// Whether terminals here do more than to write line after line.
pub(super) fn obeys() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// `line`, cut off where it is wider than `width`; colours take no room.
pub(super) fn clipped(line: &str, width: usize) -> String {
    if anstream::adapter::strip_str(line).to_string().chars().count() <= width {
        return line.to_owned();
    }
    let (mut out, mut used, mut in_colour) = (String::new(), 0, false);
    for c in line.chars() {
        let in_escape = in_colour || c == '\x1b';
        in_colour = in_escape && c != 'm';
        used += usize::from(!in_escape);
        match (in_escape, used.cmp(&width)) {
            (true, _) | (_, Ordering::Less) => out.push(c),
            (_, Ordering::Equal) => out.push('…'),
            (_, Ordering::Greater) => {}
        }
    }
    out
}

/// Writes `text` to standard output, without its colours where nobody would see them.
///
/// # Errors
/// [`ReaderGone`], or what keeps standard output from being written, such as a full disk.
pub(super) fn print(text: impl Display) -> anyhow::Result<()> {
    write_to(anstream::stdout().lock(), text)
}

/// The same for what a terminal obeys, with everything that is in it.
///
/// # Errors
/// As [`print`].
pub(super) fn raw(text: &str) -> anyhow::Result<()> {
    write_to(io::stdout().lock(), text)
}

fn write_to(mut out: impl Write, text: impl Display) -> anyhow::Result<()> {
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

/// Says something beside the answer, on standard error. That nobody may read it there is no reason to fail.
pub(super) fn aside(text: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_wide_is_cut_and_keeps_its_colours() {
        assert_eq!(clipped("abc", 3), "abc");
        assert_eq!(clipped("abcd", 3), "ab…");
        assert_eq!(clipped("\x1b[31mab\x1b[0mcd", 4), "\x1b[31mab\x1b[0mcd");
        assert_eq!(clipped("\x1b[31mab\x1b[0mcd", 3), "\x1b[31mab\x1b[0m…");
        assert_eq!(clipped("\x1b[31mabcd\x1b[0m", 3), "\x1b[31mab…\x1b[0m");
    }
}
