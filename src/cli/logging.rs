//! Logs go to standard error: text on a terminal, one JSON object a line elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;

use crate::spec::{Log, LogFormat, LogLevel};

pub(super) fn start(log: Option<&Log>) {
    let level = match log.map(|log| log.level) {
        Some(LogLevel::Error) => LevelFilter::ERROR,
        Some(LogLevel::Warn) => LevelFilter::WARN,
        Some(LogLevel::Debug) => LevelFilter::DEBUG,
        Some(LogLevel::Trace) => LevelFilter::TRACE,
        Some(LogLevel::Info) | None => LevelFilter::INFO,
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match log.map(|log| log.format) {
        Some(LogFormat::Json) => true,
        Some(LogFormat::Text) => false,
        Some(LogFormat::Auto) | None => !terminal,
    };
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(colour).init();
    }
}
