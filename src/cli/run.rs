//! `run`: the daemon.

use std::process::ExitCode;

use super::{Context, block_on, logging};
use crate::reconcile;

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let log = context.load().map(|loaded| loaded.spec.log).ok();
    logging::start(log.as_ref());
    block_on(reconcile::run(
        context.source(),
        context.state.clone(),
        context.launch()?,
    ))??;
    Ok(ExitCode::SUCCESS)
}
