//! `renew`: a new certificate now, without waiting until it is due.

use std::process::ExitCode;

use super::{Context, block_on, out};
use crate::reconcile::control::Daemon;

pub(super) fn renew(context: &Context) -> anyhow::Result<ExitCode> {
    block_on(Daemon(&context.state).renew())??;
    out::prose(
        "asked for; `dstack-vpc status` shows the new certificate once the guest agent has made it\n",
    )?;
    Ok(ExitCode::SUCCESS)
}
