//! `history`: what happened to this machine, newest last.

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::Style;

use super::{Context, out};
use crate::apply::{Real, generation};
use crate::reconcile::History;
use crate::reconcile::status::Event;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many events
    #[arg(short = 'n', long, default_value_t = 20)]
    last: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Read from the disk, so it needs no daemon.
pub(super) fn history(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let (_, events) = History::open(&context.state, args.last);
    if args.json {
        for event in &events {
            out::line(serde_json::to_string(event)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kept = generation::all(&Real::new(&context.state, None), &context.state).unwrap_or_default();
    out::print(text(&events, &kept)?)?;
    Ok(ExitCode::SUCCESS)
}

const FAINT: Style = Style::new().dimmed();

fn text(events: &[Event], kept: &[u32]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for event in events {
        let time = event.at.strftime("%Y-%m-%d %H:%M:%S");
        let generation = event
            .generation
            .map_or("-".to_owned(), |number| number.to_string());
        let took = match event.stage_ms + event.act_ms {
            0 => String::new(),
            ms => format!(", {ms} ms"),
        };
        writeln!(
            text,
            "{FAINT}{time}{FAINT:#}  generation {generation:<4} {} {FAINT}({}{took}){FAINT:#}",
            event.outcome, event.cause
        )?;
        for line in event.detail.lines() {
            writeln!(text, "    {line}")?;
        }
    }
    match (events, kept) {
        ([], _) => writeln!(text, "nothing has happened yet")?,
        (_, []) => {}
        (_, kept) => {
            let kept: Vec<_> = kept.iter().map(u32::to_string).collect();
            writeln!(text, "\nkept, for `dstack-vpc rollback`: {}", kept.join(", "))?;
        }
    }
    Ok(text)
}
