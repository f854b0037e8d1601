//! `up`: the container's entry point. The first reconcile, then supervisord takes this process over.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::limits::open_files;
use super::{Context, block_on, progress};
use crate::apply::{self, Order, Real, generation};
use crate::desired::desired;
use crate::facts::{self, Observed};
use crate::log;
use crate::paths::StateDir;
use crate::plan::plan;
use crate::reconcile::{Lock, LockError, Rollout, Wish};
use crate::spec::Front;

/// How long the first reconcile waits for the guest agent. The daemon goes on waiting, and serves meanwhile.
const AGENT_WAIT: Duration = Duration::from_secs(3);

/// The kernel's 107 bytes, without the dot and the pid that supervisord appends while it opens its socket.
const LONGEST_SOCKET: usize = 107 - 8;

/// How long a daemon that nobody supervises any more may take to drain.
const LEAVING: Duration = Duration::from_secs(10);

pub(super) fn up(context: &Context) -> anyhow::Result<ExitCode> {
    log::start(context.load().ok().map(|loaded| loaded.spec.log).as_ref());
    let supervisord = block_on(first(context))??;

    open_files();
    let conf = context.state.current().join("supervisor/supervisord.conf");
    tracing::info!("handing over to {}", supervisord.display());
    // The daemon's words go through supervisord, and still end at the same place.
    let error = Command::new(&supervisord)
        .envs(log::at_terminal().then_some((log::TERMINAL, "1")))
        .arg("--nodaemon")
        .arg("--configuration")
        .arg(&conf)
        .exec();
    Err(error).with_context(|| format!("cannot start {}", supervisord.display()))
}

/// Renders what is wished, or leaves what served last; returns where supervisord is.
async fn first(context: &Context) -> anyhow::Result<std::path::PathBuf> {
    let state = &context.state;
    let socket = state.supervisor_socket();
    if socket.as_os_str().len() > LONGEST_SOCKET {
        bail!(
            "{} is too long for a unix socket; choose a shorter --state-dir",
            socket.display()
        );
    }
    let machine = Real::new(state, None);
    let _lock = lock(state, &machine).await?;
    apply::recover(&machine, state)?;
    if machine.supervisord().await.is_some() {
        bail!(
            "supervisord already runs on {}; use `dstack-vpc apply`, or stop it first",
            state.root().display()
        );
    }
    machine.end_leftover().await;
    let served_before = generation::current(&machine, state)?;
    let mut source = context.source();
    let file = source.now().map(|loaded| source.wish(loaded));
    let mut rollout = Rollout::read(&machine, state);
    let decided = rollout.clone();
    let held = rollout.decide(&machine, state, source.digest(), file.as_ref().ok());
    if rollout != decided {
        rollout.write(&machine, state)?;
    }
    let wish = match (held, file, served_before) {
        (Some(held), ..) => held,
        (None, Ok(wish), _) => wish,
        (None, Err(error), None) => bail!(error),
        (None, Err(error), Some(number)) => {
            tracing::error!("the configuration is not used, generation {number} serves again:\n{error}");
            let last = Wish::last_good(&machine, state);
            last.context("the last good configuration is damaged")?
        }
    };
    let spec = wish.spec();
    tracing::info!("looking for the guest agent");
    let spec_now = Arc::new(spec.clone());
    let asking = facts::first(&spec_now, state, AGENT_WAIT);
    let seen = progress::during("waiting for the guest agent", asking).await?;
    let programs = &seen.facts.programs;
    let Some(supervisord) = programs.supervisord.as_ref().map(|fact| fact.value.path.clone()) else {
        bail!(
            "supervisord was not found ({}); install it: apt-get install supervisor",
            spec.supervisor.program.display()
        );
    };
    if spec.mesh.front == Front::Nginx && programs.nginx.is_none() {
        bail!(
            "nginx was not found ({}); install it: apt-get install nginx",
            spec.nginx.program.display()
        );
    }
    let rendering = reconcile(context, &machine, &wish, &rollout, &seen);
    if let Err(error) = progress::during("rendering and checking", rendering).await? {
        let Some(number) = served_before else {
            return Err(error);
        };
        tracing::error!("generation {number} serves again: {error}");
    }
    Ok(supervisord)
}

/// The lock, at once or as soon as a daemon whose supervisord was killed has let go of it.
async fn lock(state: &StateDir, machine: &Real) -> Result<Lock, LockError> {
    let deadline = tokio::time::Instant::now() + LEAVING;
    loop {
        match Lock::take(state) {
            Err(LockError::Held { .. })
                if tokio::time::Instant::now() < deadline && machine.supervisord().await.is_none() =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            taken => return taken,
        }
    }
}

async fn reconcile(
    context: &Context,
    machine: &Real,
    wish: &Wish,
    rollout: &Rollout,
    seen: &Observed,
) -> anyhow::Result<()> {
    let (state, spec) = (&context.state, wish.spec());
    let templates = wish.templates()?;
    let desired = desired(spec, &seen.facts, state, &context.launch()?, &templates)?;
    machine.know(&seen.facts.programs);
    let present = apply::look(machine, state).await?;
    let plan = plan(&desired, &present);
    let order = Order {
        cause: "`dstack-vpc up`".to_owned(),
        keep: spec.reconcile.keep.into(),
        needed: rollout.needed(),
        again: rollout.held.as_ref().map(|held| held.generation),
        probe_timeout: spec.reconcile.probe_timeout,
    };
    let applied = apply::apply(machine, state, &desired, &present, &plan, &order).await?;
    tracing::info!(
        generation = applied.generation,
        stage_ms = applied.took.stage_ms,
        "rendered and checked"
    );
    Ok(())
}
