//! `rollback`: the settings of an earlier generation, until the file changes.

use std::process::ExitCode;

use super::{Context, apply, block_on};
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
    let answer = block_on(Daemon(&context.state).rollback(args.generation))??;
    apply::say(&answer, args.json)
}
