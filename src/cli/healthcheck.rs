//! `healthcheck`: for a container's HEALTHCHECK. Exit 0 when the machine is ready, 1 when it is not, is not yet, or no daemon
//! answers. A refused edit leaves it ready: what served goes on serving, and a restart would mend nothing.

use std::process::ExitCode;

use anyhow::bail;

use super::{Context, block_on, out};
use crate::reconcile::control::Daemon;
use crate::reconcile::status::ConditionKind;

pub(super) fn healthcheck(context: &Context) -> anyhow::Result<ExitCode> {
    let status = block_on(async { Daemon(&context.state).status().await })??;
    match status.condition(ConditionKind::Ready) {
        Some(ready) if ready.holds() => out::line(&ready.message)?,
        Some(ready) => bail!("{}: {}", ready.reason, ready.message),
        None => bail!("the daemon is of another version: it names no condition `Ready`"),
    }
    Ok(ExitCode::SUCCESS)
}
