//! `plan`: what would change, and why. Exit 0 nothing to do, 2 changes pending, 1 error.

use std::process::ExitCode;

use super::apply::templates;
use super::{Context, block_on, out};
use crate::apply::{self, Real};
use crate::desired::desired;
use crate::plan::{Report, plan as make_plan};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let spec = context.load()?.spec;
    let (launch, templates) = (context.launch()?, templates(context)?);
    let plan = block_on(async {
        let seen = context.look(&spec).await;
        let desired = desired(&spec, &seen.facts, &context.state, &launch, &templates)?;
        let machine = Real::new(&context.state, None);
        let present = apply::look(&machine, &context.state).await?;
        anyhow::Ok(make_plan(&desired, &present))
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
