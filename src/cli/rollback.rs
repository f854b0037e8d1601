//! `rollback`: the settings of an earlier generation, until the file changes.

use std::process::ExitCode;

use super::{Context, apply, progress};
use crate::reconcile::control::Daemon;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which one, as `history` shows them [default: the last that had other settings]
    #[arg(value_parser = generation)]
    generation: Option<u32>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

fn generation(text: &str) -> Result<u32, &'static str> {
    text.parse()
        .map_err(|_| "a generation is a number; `dstack-vpc history` shows them")
}

pub(super) fn rollback(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let daemon = Daemon(&context.state);
    let undo = (
        "dstack-vpc apply",
        "takes it back: the file counts again".to_owned(),
    );
    let answer = apply::or_say_what_is_left(context, &[undo], async {
        let going = progress::during("going back", daemon.rollback(args.generation));
        Ok(going.await??)
    })?;
    apply::say(&answer, args.json)
}
