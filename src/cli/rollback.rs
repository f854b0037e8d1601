//! `rollback`: the settings of an earlier generation, until the file changes.

use std::process::ExitCode;

use super::{Context, apply, block_on, progress};
use crate::reconcile::control::Daemon;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which one, as `history` shows them [default: the last that had other settings]
    generation: Option<u32>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn rollback(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let daemon = Daemon(&context.state);
    let going = progress::during("going back", daemon.rollback(args.generation));
    let answer = block_on(going)???;
    apply::say(&answer, args.json)
}
