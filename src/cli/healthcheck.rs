//! `healthcheck`: for a container's HEALTHCHECK.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::{Context, block_on, out};
use crate::reconcile::control::Daemon;
use crate::reconcile::status::ConditionKind;

/// Docker's own limit is 30 s; a daemon that takes this long is not healthy.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn healthcheck(context: &Context) -> anyhow::Result<ExitCode> {
    let status = block_on(async { tokio::time::timeout(PATIENCE, Daemon(&context.state).status()).await })?;
    let status = status.map_err(|_| anyhow::anyhow!("the daemon did not answer within {PATIENCE:?}"))??;
    match status.condition(ConditionKind::Ready) {
        Some(ready) if ready.status => out::line(&ready.message)?,
        Some(ready) => bail!("{}", ready.message),
        None => bail!("the daemon is starting"),
    }
    Ok(ExitCode::SUCCESS)
}
