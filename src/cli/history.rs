//! `history`: what happened to this machine, newest last.

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::Style;

use super::{Context, out};
use crate::apply::{Real, generation};
use crate::reconcile::History;
use crate::reconcile::status::{Event, runs};

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
    out::prose(&text(&events, &kept)?)?;
    Ok(ExitCode::SUCCESS)
}

const FAINT: Style = Style::new().dimmed();

fn text(events: &[Event], kept: &[u32]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for same in runs(events) {
        let ([event, ..], [.., last]) = (same, same) else {
            continue;
        };
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
            writeln!(text, "{}", format!("    {line}").trim_end())?;
        }
        if let again @ 1.. = same.len() - 1 {
            let time = last.at.strftime("%H:%M:%S");
            writeln!(
                text,
                "    {FAINT}{again} more of the same, the last at {time} ({}){FAINT:#}",
                last.cause
            )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_in_vain_again_and_again_is_told_once() {
        let event = |second: i64, generation, outcome: &str, cause: &str| Event {
            at: jiff::Timestamp::from_second(second).unwrap(),
            generation: Some(generation),
            outcome: outcome.to_owned(),
            cause: cause.to_owned(),
            detail: "the port is taken".to_owned(),
            stage_ms: 0,
            act_ms: 0,
        };
        let events = [
            event(0, 1, "live", "start"),
            event(60, 1, "refused", "a file changed"),
            event(62, 1, "refused", "timer"),
            event(70, 1, "refused", "`dstack-vpc apply` by root"),
            event(75, 2, "live", "timer"),
        ];
        let text = text(&events, &[1, 2]).unwrap();
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string(), @r"
        1970-01-01 00:00:00  generation 1    live (start)
            the port is taken
        1970-01-01 00:01:00  generation 1    refused (a file changed)
            the port is taken
            2 more of the same, the last at 00:01:10 (`dstack-vpc apply` by root)
        1970-01-01 00:01:15  generation 2    live (timer)
            the port is taken

        kept, for `dstack-vpc rollback`: 1, 2
        ");
    }
}
