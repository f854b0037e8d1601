//! What the commands write: the answer to standard output, the rest to standard error.

use std::cmp::Ordering;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

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
        Self::of(io::stdout())
    }

    fn of(stream: impl IsTerminal + AsFd) -> Option<Self> {
        if !stream.is_terminal() {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&stream).ok();
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

/// `text`, in which lines that are wider than `width` go on below, two columns further in. Those of somebody's source
/// text stay as they are: what points into them would miss.
pub(super) fn fitted(text: &str, width: usize) -> String {
    let lines = text.lines().map(|line| {
        let plain = anstream::adapter::strip_str(line).to_string();
        let words = plain.trim_start_matches([' ', '!']);
        let indent = plain.chars().count() - words.chars().count();
        let quoted = words.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let source = ["|", "-->", "= "].iter().any(|mark| quoted.starts_with(mark));
        if plain.chars().count() <= width || source {
            return format!("{line}\n");
        }
        let begin = line.len() - line.trim_start_matches([' ', '!']).len();
        let below = wrapped(&line[begin..], indent + 2, width);
        format!("{}{}", &line[..begin], below.trim_start())
    });
    lines.collect()
}

/// Its words; what stands in backticks is one, to be copied whole.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let pairs = line.matches('`').count().is_multiple_of(2);
    let mut quoted = false;
    let parts = line.split(move |c: char| {
        quoted ^= c == '`' && pairs;
        c.is_whitespace() && !quoted
    });
    parts.filter(|word| !word.is_empty())
}

/// `text` in lines of at most `width` columns where its words allow it, each after `indent` spaces.
pub(super) fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut used = 0;
        for word in words(line) {
            let length = anstream::adapter::strip_str(word).to_string().chars().count();
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
    let text = format!("{text}\n");
    let text = match Room::of(io::stderr()) {
        Some(room) => fitted(&text, room.width),
        None => text,
    };
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// [`print`] of prose, as it fits the terminal.
///
/// # Errors
/// As [`print`].
pub(super) fn prose(text: &str) -> anyhow::Result<()> {
    match Room::on_terminal() {
        Some(room) => print(fitted(text, room.width)),
        None => print(text),
    }
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

    #[test]
    fn prose_fits_the_terminal_and_commands_and_sources_stay_whole() {
        let text = "error: nobody runs here; `dstack-vpc up` starts\n\n  12 | source = \"text of somebody\" # wide\n   | ^^^\n\
                    ! one two three four five six\n    seven eight nine ten eleven\nshort\n";
        insta::assert_snapshot!(fitted(text, 26), @r#"
        error: nobody runs here;
          `dstack-vpc up` starts

          12 | source = "text of somebody" # wide
           | ^^^
        ! one two three four
            five six
            seven eight nine ten
              eleven
        short
        "#);
        assert_eq!(wrapped("an odd ` one", 0, 4), "an\nodd\n`\none\n");
    }
}
