//! `plan`: what would change, and why. Exit 0 nothing to do, 2 changes pending, 1 error.

use std::process::ExitCode;

use super::apply::templates;
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
        false => out::print(report.to_text())?,
    }
    Ok(if plan.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}
