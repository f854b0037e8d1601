//! `plan`: what would change, and why. Exit 0 nothing to do, 2 changes pending, 1 error.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::apply::templates;
use super::out::Room;
use super::{Context, block_on, out};
use crate::apply::{self, Real};
use crate::desired::desired;
use crate::plan::{After, Report, plan as make_plan};
use crate::reconcile::before;
use crate::spec::Spec;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = context.load()?;
    let (spec, state) = (&loaded.spec, &context.state);
    let (launch, templates) = (context.launch()?, templates(context)?);
    let plan = block_on(async {
        let seen = context.look(spec).await;
        let render = |spec: &Spec| desired(spec, &seen.facts, state, &launch, &templates);
        let desired = render(spec)?;
        let machine = Real::new(state, None);
        let present = apply::look(&machine, state).await?;
        let mut plan = make_plan(&desired, &present);
        let after = After {
            spec,
            facts: &seen.facts,
            source: &|key| Some(loaded.source(key)),
            render: &|spec| render(spec).ok(),
        };
        plan.find_causes(
            &desired,
            &present,
            &before(&machine, state, &present, None),
            &after,
        );
        anyhow::Ok(plan)
    })??;
    let report = Report::from(&plan);
    match args.json {
        true => out::line(serde_json::to_string_pretty(&report)?)?,
        false => show(&report.to_text())?,
    }
    Ok(if plan.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// The prose as it fits the terminal, the differences as they are.
fn show(text: &str) -> anyhow::Result<()> {
    let (prose, differences) = text.split_at(text.find("\n--- ").unwrap_or(text.len()));
    let prose = match Room::on_terminal() {
        Some(room) => out::fitted(prose, room.width),
        None => prose.to_owned(),
    };
    out::print(coloured(&(prose + differences)))
}

const DISTURBS: Style = AnsiColor::Yellow.on_default().bold();
const GOES: Style = AnsiColor::Red.on_default();
const COMES: Style = AnsiColor::Green.on_default();

/// What somebody notices, and what goes and comes, in colours.
fn coloured(text: &str) -> String {
    let mut in_difference = false;
    let lines = text.lines().map(|line| {
        in_difference |= line.starts_with("--- ");
        let style = match (line.bytes().next(), in_difference) {
            (Some(b'!'), false) => DISTURBS,
            (Some(b'-'), true) => GOES,
            (Some(b'+'), true) => COMES,
            _ => return format!("{line}\n"),
        };
        format!("{style}{line}{style:#}\n")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_stays_as_it_is_without_its_colours() {
        let text = "1 change\n\n! a\n  b: - c\n- no difference\n\n--- live/a\n+++ new/a\n@@ -1 +1 @@\n-old\n+new\n same\n";
        let shown = coloured(text);
        assert_eq!(anstream::adapter::strip_str(&shown).to_string(), text);
        assert!(shown.contains(&format!("{DISTURBS}! a{DISTURBS:#}\n")), "{shown}");
        assert!(shown.contains(&format!("{COMES}+new{COMES:#}\n")), "{shown}");
        assert!(shown.contains("\n- no difference\n"), "{shown}");
    }
}
