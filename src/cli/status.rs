//! `status`: what the daemon says of itself, the one thing that is wrong first.

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::{Context, block_on, out, vpn_status};
use crate::reconcile::control::Daemon;
use crate::reconcile::status::{Condition, ConditionKind, Status, Truth};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Go on printing as it changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Exit 0 when the machine is ready and as configured, 1 when it is not or no daemon answers.
pub(super) fn status(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let daemon = Daemon(&context.state);
        let mut status = daemon.status().await?;
        show(&status, args)?;
        if args.watch {
            loop {
                let next = daemon.next_status().await?;
                if next != status {
                    status = next;
                    show(&status, args)?;
                }
            }
        }
        let fine = status
            .condition(ConditionKind::Degraded)
            .is_some_and(|condition| condition.status == Truth::False);
        Ok(if fine {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })?
}

fn show(status: &Status, args: &Args) -> anyhow::Result<()> {
    match (args.json, args.watch) {
        // One object a line can be read while it goes on.
        (true, true) => out::line(serde_json::to_string(status)?)?,
        (true, false) => out::line(serde_json::to_string_pretty(status)?)?,
        (false, watch) => {
            if watch {
                out::print("\x1b[H\x1b[2J")?;
            }
            out::print(text(status))?;
        }
    }
    Ok(())
}

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();

fn text(status: &Status) -> String {
    let mut out = String::new();
    let _ = write_text(&mut out, status);
    out
}

fn write_text(out: &mut String, status: &Status) -> std::fmt::Result {
    let find = |kind| status.condition(kind);
    match find(ConditionKind::Ready) {
        Some(ready) if ready.status != Truth::Unknown => {
            let degraded = find(ConditionKind::Degraded).filter(|condition| condition.holds());
            match (ready.holds(), degraded) {
                (true, None) => writeln!(out, "{GOOD}ready{GOOD:#}: {}", ready.message)?,
                (true, Some(wrong)) => {
                    writeln!(
                        out,
                        "{BAD}degraded{BAD:#}: it serves, but not everything is as it should be"
                    )?;
                    indent(out, &wrong.message)?;
                }
                (false, wrong) => {
                    writeln!(out, "{BAD}not ready{BAD:#}")?;
                    indent(out, wrong.map_or(&ready.message, |wrong| &wrong.message))?;
                }
            }
        }
        _ => writeln!(out, "{BAD}starting{BAD:#}: the first reconcile has not ended")?,
    }
    writeln!(out)?;
    let generation = status
        .generation
        .map_or_else(|| "none".to_owned(), |number| number.to_string());
    row(
        out,
        "generation",
        &format!(
            "{generation}{}",
            if status.owed { " (not proven yet)" } else { "" }
        ),
    )?;
    if let Some(unconfirmed) = &status.rollout.unconfirmed {
        let message = format!(
            "wants `dstack-vpc confirm` within {}, else generation {} serves again",
            in_seconds(unconfirmed.until),
            unconfirmed.back_to
        );
        row(out, "unconfirmed", &message)?;
    }
    row(out, "role", &status.role)?;
    let pending = match status.config.generation > status.config.observed_generation {
        true => " (has just changed: what stands here is not about it yet)",
        false => "",
    };
    row(out, "config", &format!("{}{pending}", status.config.source))?;
    if let Some(identity) = &status.identity {
        row(out, "app id", identity.app_id.as_deref().unwrap_or("none"))?;
        row(out, "certificate", &format!("until {}", identity.not_after))?;
    }
    for fact in status.facts.iter().filter(|fact| fact.key == "gateway") {
        row(out, "gateway", &format!("{} ({})", fact.value, fact.source))?;
    }
    if let Some(node) = &status.node {
        vpn_status::node(out, node, Timestamp::now())?;
    }
    if let Some(api) = &status.api {
        vpn_status::server(out, api)?;
    }
    for (name, service) in &status.services {
        let pid = service.pid.map(|pid| format!(" pid {pid}")).unwrap_or_default();
        row(out, name, &format!("{}{pid}", service.state))?;
    }
    for condition in &status.conditions {
        row(out, &format!("{:?}", condition.kind), &condition_text(condition))?;
    }
    for owed in &status.owed_actions {
        row(out, "owed", owed)?;
    }
    if let Some(retry) = status.next_retry {
        row(out, "next retry", &format!("in {}", in_seconds(retry)))?;
    }
    for note in &status.notes {
        row(out, "note", note)?;
    }
    if !status.history.is_empty() {
        writeln!(out)?;
        for event in status.history.iter().rev().take(5) {
            let time = event.at.strftime("%H:%M:%S");
            let first = event.detail.lines().next().unwrap_or_default();
            writeln!(
                out,
                "{FAINT}{time}{FAINT:#} {}: {}",
                event.outcome,
                short(first, 60)
            )?;
        }
    }
    Ok(())
}

fn in_seconds(at: Timestamp) -> String {
    let seconds = (at - Timestamp::now()).total(jiff::Unit::Second);
    format!("{}s", seconds.map_or(0.0, f64::ceil).max(0.0))
}

fn condition_text(condition: &Condition) -> String {
    let word = match condition.status {
        Truth::True => "yes",
        Truth::False => "no",
        Truth::Unknown => "not known",
    };
    format!(
        "{word}, {} since {}",
        condition.reason,
        condition.since.strftime("%Y-%m-%d %H:%M:%S")
    )
}

pub(super) fn row(out: &mut String, name: &str, value: &str) -> std::fmt::Result {
    writeln!(out, "  {FAINT}{name:<16}{FAINT:#} {value}")
}

fn indent(out: &mut String, text: &str) -> std::fmt::Result {
    text.lines().try_for_each(|line| writeln!(out, "  {line}"))
}

fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
