//! `apply`: one reconcile, by the daemon where one runs, else here.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use super::{Context, block_on, out, progress};
use crate::apply::{self, Left, Order, Real};
use crate::desired::{Templates, desired};
use crate::facts;
use crate::plan::plan;
use crate::reconcile::control::{Answer, AskError, Daemon};
use crate::reconcile::{Lock, Rollout};
use crate::spec::parse_duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go back after this time, e.g. 60s, unless `confirm` is given before: for changes that may cut you off
    #[arg(long, value_name = "TIME", value_parser = time)]
    confirm: Option<Duration>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn apply(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    // The daemon reads the same file, but a message about it is better here, where it was asked for.
    context.load()?;
    let answer = block_on(async {
        let daemon = Daemon(&context.state);
        let applying = progress::during("making it live", daemon.apply(args.confirm));
        match applying.await? {
            Ok(answer) => Ok(answer),
            Err(AskError::NotRunning(_)) if args.confirm.is_none() => alone(context).await,
            Err(error) => Err(error.into()),
        }
    })??;
    say(&answer, args.json)
}

/// Says how it went, and exits 0 when what was wanted serves.
pub(super) fn say(answer: &Answer, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        out::line(serde_json::to_string_pretty(answer)?)?;
    } else if answer.live {
        out::line(&answer.message)?;
    } else {
        bail!("{}", answer.message);
    }
    Ok(match answer.live {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .map_err(|advice| advice.unwrap_or_else(|| "a time is written like 30s, 5m or 1h".to_owned()))
}

async fn alone(context: &Context) -> anyhow::Result<Answer> {
    let state = &context.state;
    let _lock = Lock::take(state)?;
    let machine = Real::new(state, None);
    let spec = Arc::new(context.load()?.spec);
    apply::recover(&machine, state)?;
    let mut rollout = Rollout::read(&machine, state);
    if rollout.held.take().is_some() {
        rollout.write(&machine, state)?;
    }
    let present = apply::look(&machine, state).await?;
    if present.services.is_none() {
        bail!(
            "neither the daemon nor supervisord runs on {}, so nothing can be made live; `dstack-vpc up` starts them",
            state.root().display()
        );
    }
    let asking = facts::first(&spec, state, spec.dstack.agent_timeout);
    let seen = progress::during("asking the guest agent", asking).await?;
    let desired = desired(
        &spec,
        &seen.facts,
        state,
        &context.launch()?,
        &templates(context)?,
    )?;
    machine.know(&seen.facts.programs);
    let plan = plan(&desired, &present);
    let order = Order {
        cause: "`dstack-vpc apply`".to_owned(),
        keep: spec.reconcile.keep.into(),
        needed: rollout.needed(),
        again: None,
        probe_timeout: spec.reconcile.probe_timeout,
    };
    let applying = apply::apply(&machine, state, &desired, &present, &plan, &order);
    Ok(match progress::during("making it live", applying).await? {
        Ok(applied) => Answer {
            live: applied.proven,
            changed: applied.changed,
            generation: Some(applied.generation),
            message: format!("generation {} is live", applied.generation),
        },
        Err(error) => Answer {
            live: false,
            changed: false,
            generation: present.generation,
            message: match error.left {
                Left::Untouched => format!("{}\nnothing was changed", error.failure),
                Left::RolledBackTo(number) => {
                    format!("{}\nrolled back: generation {number} serves again", error.failure)
                }
                Left::Unproven(why) => format!("{}\n{why}", error.failure),
            },
        },
    })
}

/// The built-in templates, with the overrides that lie beside the configuration.
pub(super) fn templates(context: &Context) -> anyhow::Result<Templates> {
    Ok(match context.source().templates().filter(|dir| dir.is_dir()) {
        Some(dir) => Templates::with_overrides(&dir)?,
        None => Templates::builtin(),
    })
}
