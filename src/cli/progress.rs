//! Says to a person at a terminal what takes long, and for how long already. Elsewhere nothing is said.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::out::{Interrupted, obeys};
use crate::words;

/// What is done within this time needs no words.
const SOON: Duration = Duration::from_millis(400);

/// Waits for `work`, and shows `what` on standard error until it is done.
///
/// # Errors
/// [`Interrupted`] by Ctrl-C, with nothing left on the terminal.
pub(super) async fn during<F: Future>(what: &str, work: F) -> anyhow::Result<F::Output> {
    if !io::stderr().is_terminal() || !obeys() {
        return Ok(work.await);
    }
    let began = Instant::now();
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut work = pin!(work);
    let (mut line, mut next) = (Line(false), SOON);
    loop {
        tokio::select! {
            output = &mut work => return Ok(output),
            _ = interrupted.recv() => return Err(Interrupted.into()),
            () = tokio::time::sleep(next) => line.show(&format!("… {what}, {}", words::span(began.elapsed()))),
        }
        next = Duration::from_secs(1);
    }
}

/// The line that the cursor is in, once something was written into it.
struct Line(bool);

impl Line {
    /// The cursor goes back to its begin, so that a line of the log takes its place.
    fn show(&mut self, text: &str) {
        self.0 = true;
        // Whoever does not see it has lost nothing.
        let _ = write!(io::stderr(), "\r{text}\x1b[K\r");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.0 {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
