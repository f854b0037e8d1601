//! `doctor`: what will not work on this machine, and how to mend it. Exit 1 when there is an error.

use std::process::ExitCode;

use super::{Context, block_on, out};
use crate::doctor::{examine, modules};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Also tell what was looked at and is well
    #[arg(long, short)]
    verbose: bool,
    /// First load the netfilter modules that the kernel lacks from tailscale.modules_dir (as root)
    #[arg(long)]
    load_modules: bool,
}

pub(super) fn doctor(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = context.source().load();
    if args.load_modules {
        let spec = &loaded.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?.spec;
        for path in modules::load(spec.tailscale.modules_dir.as_deref())? {
            anstream::eprintln!("loaded {}", path.display());
        }
    }
    let report = block_on(examine(loaded.as_ref().map_err(String::as_str), &context.state))?;
    match args.json {
        true => out::line(serde_json::to_string_pretty(&report)?)?,
        false => out::print(report.text(args.verbose))?,
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
