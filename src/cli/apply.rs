//! `apply`: one reconcile, by the daemon where one runs, else here.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use super::{Context, out, progress, until_ctrl_c};
use crate::apply::journal::Journal;
use crate::apply::{self, Left, Order, Real, generation};
use crate::desired::{Templates, desired};
use crate::facts;
use crate::paths::StateDir;
use crate::plan::plan;
use crate::reconcile::control::{Answer, AskError, Daemon};
use crate::reconcile::{Lock, Rollout};
use crate::spec::parse_duration;
use crate::words;

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
    let mut commands = vec![("dstack-vpc rollback", "takes it back".to_owned())];
    commands.extend(args.confirm.map(|time| {
        let else_back = format!(
            "keeps it; else it goes back, {} after it is live",
            words::span(time)
        );
        ("dstack-vpc confirm", else_back)
    }));
    let answer = or_say_what_is_left(context, &commands, async {
        let daemon = Daemon(&context.state);
        let applying = progress::during("making it live", daemon.apply(args.confirm));
        match applying.await? {
            Ok(answer) => Ok(answer),
            Err(AskError::NotRunning(_)) if args.confirm.is_none() => alone(context).await,
            Err(error) => Err(error.into()),
        }
    })?;
    say(&answer, args.json)
}

/// Until Ctrl-C, which ends the waiting and, where a daemon runs, nothing else: so it is said what serves, what goes on,
/// and what `commands` there are to follow.
pub(super) fn or_say_what_is_left(
    context: &Context,
    commands: &[(&str, String)],
    asking: impl Future<Output = anyhow::Result<Answer>>,
) -> anyhow::Result<Answer> {
    until_ctrl_c(asking).inspect_err(|error| {
        if error.is::<out::Interrupted>() {
            let goes_on = Daemon(&context.state).is_there();
            out::aside(left(&context.state, goes_on.then_some(commands)).trim_end());
        }
    })
}

/// `commands`: of a daemon, which goes on.
fn left(state: &StateDir, commands: Option<&[(&str, String)]>) -> String {
    let machine = Real::new(state, None);
    let journal = Journal::read(&machine, state).ok().flatten();
    let current = generation::current(&machine, state).ok().flatten();
    let stands = match (&journal, current) {
        (_, None) => "nothing serves yet".to_owned(),
        (None, Some(current)) => format!("generation {current} serves"),
        (
            Some(Journal {
                rolling_back: true,
                from,
                to,
                ..
            }),
            Some(_),
        ) => {
            let back = from.map_or("the one before".to_owned(), |from| from.to_string());
            format!("generation {to} has failed, and {back} is coming back")
        }
        (Some(journal), Some(current)) if journal.to == current => {
            format!("generation {current} is in place, and has not proven yet that it serves")
        }
        (Some(journal), Some(current)) => {
            format!("generation {current} serves, and {} is about to", journal.to)
        }
    };
    let follow = ("dstack-vpc status --watch", "shows it".to_owned());
    let finish = (
        "dstack-vpc apply",
        "finishes it or takes it back; so does a daemon that starts".to_owned(),
    );
    let (goes_on, commands) = match (commands, &journal) {
        (Some(commands), _) => (
            "The daemon goes on with it all the same, until it is live or rolled back.",
            [&[follow], commands].concat(),
        ),
        (None, Some(_)) => ("No daemon runs, so nobody goes on with it.", vec![finish]),
        (None, None) => ("No daemon runs, so nothing goes on.", Vec::new()),
    };
    let lines = commands
        .iter()
        .map(|(command, what)| format!("  {command:<27}{what}\n"));
    format!("interrupted: {stands}\n{goes_on}\n{}", lines.collect::<String>())
}

/// Says how it went, and exits 0 when what was wanted serves.
pub(super) fn say(answer: &Answer, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        out::line(serde_json::to_string_pretty(answer)?)?;
    } else if answer.live {
        out::prose(&format!("{}\n", answer.message))?;
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
        Ok(applied) => {
            apply::prune(&machine, state, order.keep, &order.needed, &applied);
            Answer {
                live: applied.proven,
                changed: applied.changed,
                generation: Some(applied.generation),
                message: format!("generation {} is live", applied.generation),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_is_answered_with_what_serves_and_what_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(root.path());
        let none = "interrupted: nothing serves yet\nNo daemon runs, so nothing goes on.\n";
        assert_eq!(left(&state, None), none);

        std::os::unix::fs::symlink("generations/000042", state.current()).unwrap();
        let back = [("dstack-vpc rollback", "takes it back".to_owned())];
        insta::assert_snapshot!(left(&state, Some(&back)), @r"
        interrupted: generation 42 serves
        The daemon goes on with it all the same, until it is live or rolled back.
          dstack-vpc status --watch  shows it
          dstack-vpc rollback        takes it back
        ");

        std::fs::create_dir(state.run()).unwrap();
        for (to, rolling_back, stands) in [
            (43, false, "generation 42 serves, and 43 is about to"),
            (
                42,
                false,
                "generation 42 is in place, and has not proven yet that it serves",
            ),
            (43, true, "generation 43 has failed, and 41 is coming back"),
        ] {
            let journal = Journal {
                from: Some(41),
                to,
                rolling_back,
                ..Journal::default()
            };
            let bytes = serde_json::to_vec(&journal).unwrap();
            std::fs::write(state.run().join("journal.json"), bytes).unwrap();
            let told = left(&state, None);
            assert!(
                told.starts_with(&format!("interrupted: {stands}\nNo daemon")),
                "{told}"
            );
            assert!(told.contains("\n  dstack-vpc apply "), "{told}");
        }
    }
}
