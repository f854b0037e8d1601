//! The log: to standard error, as text on a terminal and one JSON object a line elsewhere.
//!
//! The daemon's never waits for whoever reads it: lines wait in a queue, and when that is full they are dropped and
//! counted. Requests have a queue of their own, so that they push nothing else out.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::spec::{Log, LogFormat, LogLevel};

/// The events that are lines of the access log. Whether there are any is not asked of `log.level`.
pub(crate) const ACCESS: &str = "access";

/// Lines that wait to be written; they are half a kilobyte each.
const QUEUE: usize = 4096;

/// Set by `up` for the daemon below it: a person reads what it writes.
pub(crate) const TERMINAL: &str = "DSTACK_VPC_AT_TERMINAL";

static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();
static DROPPED: OnceLock<[(&str, ErrorCounter); 2]> = OnceLock::new();

/// Starts the log of a command, once in a process; without settings it says what matters.
pub fn start(log: Option<&Log>) {
    let style = Style::new(log);
    let daemon = style.layer(io::stderr);
    let (level, handle) = reload::Layer::new(style.level);
    tracing_subscriber::registry()
        .with(daemon.with_filter(level))
        .init();
    let _ = LEVEL.set(handle);
}

/// Starts the log of the daemon, once in a process. What waits when the guard is dropped is still written, if that is
/// soon done.
#[must_use]
pub fn start_queued(log: Option<&Log>) -> Guard {
    let style = Style::new(log);
    let ((daemon, daemon_guard), (access, access_guard)) = (queue("log"), queue("access-log"));
    let dropped = [("daemon", &daemon), ("access", &access)];
    let _ = DROPPED.set(dropped.map(|(name, queue)| (name, queue.error_counter())));
    let (level, handle) = reload::Layer::new(style.level.clone());
    let requests = Targets::new().with_target(ACCESS, LevelFilter::INFO);
    tracing_subscriber::registry()
        .with(style.layer(daemon).with_filter(level))
        .with(style.layer(access).with_filter(requests))
        .init();
    let _ = LEVEL.set(handle);
    Guard(daemon_guard, access_guard)
}

fn queue(name: &str) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .thread_name(name)
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .finish(io::stderr())
}

/// Keeps the queues of the log going.
pub struct Guard(#[allow(dead_code)] WorkerGuard, #[allow(dead_code)] WorkerGuard);

/// Lines that nobody took in time: of what the daemon says, and of requests.
pub(crate) fn dropped() -> [(&'static str, u64); 2] {
    match DROPPED.get() {
        Some([daemon, access]) => [daemon, access].map(|(name, lines)| (*name, lines.dropped_lines() as u64)),
        None => [("daemon", 0), ("access", 0)],
    }
}

/// Whether a person sees what is written to standard error.
pub(crate) fn at_terminal() -> bool {
    io::stderr().is_terminal() || std::env::var_os(TERMINAL).is_some()
}

/// Changes the level of the running log.
pub fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get() {
        // It fails only when there is no log any more.
        let _ = handle.reload(filter(level));
    }
}

struct Style {
    level: Targets,
    json: bool,
    colour: bool,
}

impl Style {
    fn new(log: Option<&Log>) -> Self {
        let terminal = at_terminal();
        Self {
            level: filter(log.map_or(LogLevel::Info, |log| log.level)),
            json: match log.map_or(LogFormat::Auto, |log| log.format) {
                LogFormat::Json => true,
                LogFormat::Text => false,
                LogFormat::Auto => !terminal,
            },
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    fn layer<S, W>(&self, writer: W) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
        W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    {
        let layer = fmt::layer().with_target(false);
        match self.json {
            true => layer.with_writer(writer).json().flatten_event(true).boxed(),
            false => layer.with_writer(OneLine(writer)).with_ansi(self.colour).boxed(),
        }
    }
}

/// Each event is one line: those of a message are joined by a sign. In JSON they are so by themselves.
struct OneLine<M>(M);

struct Joining<W>(W);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for OneLine<M> {
    type Writer = Joining<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Joining(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for Joining<W> {
    /// An event comes in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut lines = event.trim_ascii_end().split(|byte| *byte == b'\n');
        let mut joined = lines.next().unwrap_or_default().to_vec();
        for line in lines {
            joined.extend_from_slice(" \u{23ce} ".as_bytes());
            joined.extend_from_slice(line.trim_ascii());
        }
        joined.push(b'\n');
        self.0.write_all(&joined)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What libraries say in detail would drown our own words, so they are heard from `warn` on. Notify warns of whatever is
/// deleted while it is watched.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level)
        .with_target("notify", LevelFilter::ERROR)
        .with_target(ACCESS, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_in_both_formats() {
        for json in [false, true] {
            let page = Page::default();
            let (level, colour) = (filter(LogLevel::Info), false);
            let style = Style { level, json, colour };
            let there = page.clone();
            let log = tracing_subscriber::registry().with(style.layer(move || there.clone()));
            tracing::subscriber::with_default(log, || {
                tracing::error!(words = "three\nfour", "one\n   two\n");
                tracing::info!("five");
            });
            let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), 2, "{text}");
            for word in ["one", "two", "three", "four"] {
                assert!(lines[0].contains(word), "{text}");
            }
            assert_eq!(serde_json::from_str::<serde_json::Value>(lines[0]).is_ok(), json);
        }
    }
}
