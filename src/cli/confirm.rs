//! `confirm`: what `apply --confirm` made live may stay.

use std::process::ExitCode;

use super::{Context, apply, block_on};
use crate::reconcile::control::Daemon;

pub(super) fn confirm(context: &Context) -> anyhow::Result<ExitCode> {
    apply::say(&block_on(Daemon(&context.state).confirm())??, false)
}
