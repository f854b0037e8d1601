//! `healthcheck`: for a container's HEALTHCHECK.

use std::process::ExitCode;

use anyhow::bail;

use super::{Context, block_on, out};
use crate::reconcile::control::Daemon;
use crate::reconcile::status::ConditionKind;

pub(super) fn healthcheck(context: &Context) -> anyhow::Result<ExitCode> {
    let status = block_on(async { Daemon(&context.state).status().await })??;
    match status.condition(ConditionKind::Ready) {
        Some(ready) if ready.status => out::line(&ready.message)?,
        Some(ready) => bail!("{}", ready.message),
        None => bail!("the daemon is starting"),
    }
    Ok(ExitCode::SUCCESS)
}
