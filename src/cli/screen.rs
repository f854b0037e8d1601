//! A picture on a terminal that is drawn again in its place, and of which nothing is left at the end.

use std::io;

use anstream::{AutoStream, ColorChoice};

use super::out::{self, Room};

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal's other screen. What stood on the terminal before is there again when this is dropped.
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// # Errors
    /// As [`out::print`].
    pub(super) fn open() -> anyhow::Result<Self> {
        out::raw(ENTER)?;
        let colours = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Ok(Self { colours })
    }

    /// As much of `text` as there is room for.
    ///
    /// # Errors
    /// As [`out::print`].
    pub(super) fn draw(&self, text: &str, room: &Room) -> anyhow::Result<()> {
        let text = match self.colours {
            true => text.to_owned(),
            false => anstream::adapter::strip_str(text).to_string(),
        };
        let lines = text
            .lines()
            .take(room.rows)
            .map(|line| out::clipped(line, room.width));
        // Written over what was there, and never empty in between.
        let lines: Vec<_> = lines.map(|line| format!("{line}\x1b[K")).collect();
        out::raw(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // With nobody at the other end there is no screen either.
        let _ = out::raw(LEAVE);
    }
}
