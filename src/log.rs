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
        let terminal = io::stderr().is_terminal();
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
        let layer = fmt::layer().with_writer(writer).with_target(false);
        match self.json {
            true => layer.json().flatten_event(true).boxed(),
            false => layer.with_ansi(self.colour).boxed(),
        }
    }
}

/// What libraries say in detail would drown our own words, so they are heard from `warn` on.
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
        .with_target(ACCESS, LevelFilter::OFF)
}
