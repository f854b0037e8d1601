//! What happened to this machine, newest last: one JSON object a line, kept over restarts.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::status::Event;
use crate::paths::StateDir;

/// Lines that are kept; the file is cut back to them when it has twice as many.
const KEPT: usize = 1000;

/// The file, and how long it is.
pub struct History {
    path: PathBuf,
    lines: usize,
}

impl History {
    /// The history below a state directory, and its last events.
    pub fn open(state: &StateDir, last: usize) -> (Self, Vec<Event>) {
        let path = state.root().join("history.jsonl");
        let (lines, events) = read(&path, last).unwrap_or_default();
        (Self { path, lines }, events)
    }

    /// Adds a line. What cannot be written is in the log as well, so it is no reason to stop.
    pub fn add(&mut self, event: &Event) {
        if let Err(error) = self.try_add(event) {
            tracing::warn!(%error, "the history cannot be written to {}", self.path.display());
        }
    }

    fn try_add(&mut self, event: &Event) -> io::Result<()> {
        if self.lines >= 2 * KEPT {
            self.cut()?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        file.write_all(&line)?;
        self.lines += 1;
        Ok(())
    }

    fn cut(&mut self) -> io::Result<()> {
        let (_, events) = read(&self.path, KEPT)?;
        let new = self.path.with_extension("tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        for event in &events {
            serde_json::to_writer(&mut file, event)?;
            file.write_all(b"\n")?;
        }
        fs::rename(&new, &self.path)?;
        self.lines = events.len();
        Ok(())
    }
}

/// How many lines there are, and the last events. A line that was cut off by a kill is passed over.
fn read(path: &std::path::Path, last: usize) -> io::Result<(usize, Vec<Event>)> {
    let mut events = VecDeque::with_capacity(last);
    let mut lines = 0;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        lines += 1;
        if let Ok(event) = serde_json::from_slice(&line?) {
            if events.len() == last {
                events.pop_front();
            }
            events.push_back(event);
        }
    }
    Ok((lines, events.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(detail: usize) -> Event {
        Event {
            at: jiff::Timestamp::UNIX_EPOCH,
            generation: Some(1),
            outcome: "live".into(),
            cause: "test".into(),
            detail: detail.to_string(),
            stage_ms: 0,
            act_ms: 0,
        }
    }

    #[test]
    fn it_is_read_again_and_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let (mut history, events) = History::open(&state, 3);
        assert!(events.is_empty());
        for number in 0..5 * KEPT {
            history.add(&event(number));
        }
        // A kill in the middle of a line.
        let half = OpenOptions::new().append(true).open(&history.path);
        half.unwrap().write_all(b"{\"at\":\"19").unwrap();

        let (again, events) = History::open(&state, 3);
        let last = [5 * KEPT - 3, 5 * KEPT - 2, 5 * KEPT - 1].map(event);
        assert_eq!(events, last);
        assert!(again.lines <= 2 * KEPT + 1, "{}", again.lines);
    }
}
