//! `run`: the daemon.

use std::process::ExitCode;

use super::limits::{keep_memory_private, open_files};
use super::{Context, block_on};
use crate::log;
use crate::reconcile;

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let settings = context.load().map(|loaded| loaded.spec.log).ok();
    let _log = log::start_queued(settings.as_ref());
    keep_memory_private();
    open_files();
    block_on(reconcile::run(
        context.source(),
        context.state.clone(),
        context.launch()?,
    ))??;
    Ok(ExitCode::SUCCESS)
}
