//! `completions`: for the shells.

use std::process::ExitCode;

use clap_complete::Shell;

use super::{command, out};

const NAME: &str = "dstack-vpc";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
pub(super) fn completions(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), NAME, &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if args.shell == Shell::Bash {
        // clap_complete 4.6 spells a hyphen in two ways, and so completes nothing behind a command:
        // https://github.com/clap-rs/clap/issues/6421
        script = script.replace("dstack__subcmd__vpc", "dstack__vpc");
    }
    out::print(script)?;
    Ok(ExitCode::SUCCESS)
}
