//! The level-triggered loop that keeps the machine the way the file says.
//!
//! Whatever wakes it (a file event, a fact, a signal, a child's end, the timer) only means "look again". One
//! reconcile runs at a time; what it does depends on what it finds, never on what woke it.

mod children;
mod conditions;
pub mod control;
mod drift;
mod failed;
mod history;
pub mod lock;
mod look;
mod orders;
mod readable;
pub mod reasons;
mod rollout;
mod round;
mod source;
pub mod status;
mod tell;
mod told;
mod unwell;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::api::ApiStatus;
use crate::apply::{self, Own, Real};
use crate::desired::{Launch, backends};
use crate::facts::Watcher;
use crate::metrics::Sources;
use crate::metrics::cells::Histogram;
use crate::node::{Node, NodeSettings};
use crate::paths::StateDir;
use crate::spec::Spec;
use children::Children;
use control::{Answer, Ask};
use drift::Programs;
use failed::Attempts;
pub use history::History;
pub use lock::{Lock, LockError};
pub use look::before;
use orders::Then;
pub use rollout::Rollout;
use round::Rendered;
pub use round::{Aim, Attempt};
pub use source::{Source, Wish};
use status::Status;
use tell::Teller;
pub use told::{Around, Round, Told};
use watch::{Ahead, Watch};

/// The longest a burst of changes may hold back a reconcile.
const BURST: Duration = Duration::from_secs(1);

/// How soon to look again at a program that does not run, or has just been started.
const UNEASY: Duration = Duration::from_secs(1);

/// Why the daemon could not start. Once it runs, nothing ends it but a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No last good generation to serve instead.
    #[error("{0}")]
    Config(String),
    #[error("{0}")]
    Disk(#[from] apply::DiskError),
    #[error("the daemon's socket cannot be opened: {0}")]
    Socket(std::io::Error),
    #[error("signals cannot be handled: {0}")]
    Signals(std::io::Error),
}

/// The daemon: everything it owns lives and ends here.
struct Daemon {
    state: StateDir,
    source: Source,
    launch: Launch,
    machine: Arc<Real>,
    facts: Watcher,
    wanted: channel::Sender<Arc<Spec>>,
    attempts: Attempts,
    /// When the wish that failed is due again.
    retry: Option<Instant>,
    /// When to look whether a program that does not run has come back: no event tells of a start by hand.
    uneasy: Option<Instant>,
    /// The settings that serve.
    live: Option<Wish>,
    rollout: Rollout,
    /// This machine in the VPN, and what it is told to do there.
    node: Node,
    joining: channel::Sender<Option<NodeSettings>>,
    /// Whether it was told anything yet.
    told: bool,
    /// How the VPC API is, while it is open.
    api: Option<channel::Receiver<ApiStatus>>,
    teller: Teller,
    /// How long reconciles took.
    durations: Arc<Histogram>,
    watch: Watch,
    children: Children,
    programs: Programs,
    /// The nginx that has proven itself.
    asked: Option<i32>,
    /// The generation that was made live last.
    made: Option<u32>,
    rendered: Option<Rendered>,
}

/// Runs until SIGTERM or SIGINT; then drains and returns.
pub async fn run(source: Source, state: StateDir, launch: Launch) -> Result<(), RunError> {
    let _lock = Lock::take(&state)?;
    let cancel = CancellationToken::new();
    // Nothing is known of the identity yet, and reading the disk needs none.
    let mut source = source;
    let disk = Real::new(&state, None);
    let live = Wish::last_good(&disk, &state);
    let loaded = source.now();
    let loaded = loaded.or_else(|error| live.as_ref().map(|live| Arc::clone(&live.loaded)).ok_or(error));
    let spec = Arc::new(loaded.map_err(RunError::Config)?.spec.clone());
    let (wanted, specs) = channel::channel(spec);
    let facts = Watcher::start(specs, state.clone(), cancel.clone()).await;
    let (status, statuses) = channel::channel(Status::default());
    let durations = Arc::new(Histogram::default());
    let own = Own {
        identity: facts.identity.clone(),
        sources: Sources {
            status: statuses.clone(),
            observed: facts.observed.clone(),
            reconciles: Arc::clone(&durations),
        },
        former: apply::in_use(&disk, &state)
            .into_iter()
            .filter_map(|number| Wish::of_generation(&disk, &state, number))
            .flat_map(|wish| backends(wish.spec()))
            .collect(),
    };
    let machine = Arc::new(Real::new(&state, Some(own)));
    apply::recover(&*machine, &state)?;

    let (asks, mut asked) = mpsc::channel(8);
    let around = control::Shared {
        status: statuses,
        asks,
        machine: machine.clone(),
        source: source.clone(),
    };
    let control = control::serve(&state, around, cancel.clone()).map_err(RunError::Socket)?;
    let control = tokio::spawn(control);
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;

    let (joining, settings) = channel::channel(None);
    let node = Node::start(settings, state.clone(), cancel.clone());
    let parent = supervised_by();
    let mut daemon = Daemon {
        teller: Teller::new(status, &source, &state),
        rollout: Rollout::read(&*machine, &state),
        state,
        durations,
        source,
        launch,
        machine,
        facts,
        wanted,
        attempts: Attempts::default(),
        retry: None,
        uneasy: None,
        live,
        node,
        joining,
        told: false,
        api: None,
        watch: Watch::new(),
        children: Children::new(parent),
        programs: Programs::default(),
        asked: None,
        made: None,
        rendered: None,
    };
    tracing::info!(config = %daemon.source, state = %daemon.state.root().display(), "started");
    let mut causes = BTreeSet::from(["start".to_owned()]);
    let mut waiting: Vec<(Then, oneshot::Sender<Answer>)> = Vec::new();
    loop {
        if parent.is_some_and(|pid| pid != std::os::unix::process::parent_id()) {
            // Nobody would start what ends, or end what runs: the next `up` finds the ports and the lock free.
            tracing::error!("supervisord was killed: all that it ran ends");
            daemon.children.end();
            daemon.stop(cancel, control, "supervisord is gone").await;
            return Ok(());
        }
        let answer = daemon.reconcile(&causes, !waiting.is_empty()).await;
        for (then, sender) in waiting.drain(..) {
            let _ = sender.send(daemon.done(then, answer.clone()));
        }
        causes.clear();
        let wake = daemon.next_look();
        let mut burst: Option<(Instant, Ahead)> = None;
        loop {
            // Quiet for a moment after the last change, but never longer than a burst may last.
            let debounce = daemon.wanted.borrow().reconcile.debounce;
            let quiet =
                burst.map(|(first, ahead)| (Instant::now() + ahead.quiet(debounce)).min(first + BURST));
            let (cause, ahead) = tokio::select! {
                biased;
                _ = terminate.recv() => {
                    daemon.stop(cancel, control, "SIGTERM").await;
                    return Ok(());
                },
                _ = interrupt.recv() => {
                    daemon.stop(cancel, control, "SIGINT").await;
                    return Ok(());
                },
                _ = hangup.recv() => {
                    daemon.attempts.forget();
                    ("SIGHUP".to_owned(), None)
                }
                Some(ask) = asked.recv() => match ask {
                    Ask::Do(order, sender) => match daemon.begin(&order) {
                        Ok(then) => {
                            waiting.push((then, sender));
                            (order.by, None)
                        }
                        Err(answer) => {
                            let _ = sender.send(answer);
                            continue;
                        }
                    },
                    Ask::Renew => {
                        daemon.facts.renew_now();
                        continue;
                    }
                },
                pid = daemon.children.ended() => (format!("a program ended (pid {pid})"), Some(Ahead::Perhaps)),
                changed = daemon.facts.observed.changed() => match changed {
                    Ok(()) => ("a fact changed".to_owned(), None),
                    Err(_) => std::future::pending().await,
                },
                _ = daemon.node.status.changed() => ("the VPN changed".to_owned(), Some(Ahead::Perhaps)),
                () = news(&mut daemon.api) => ("the VPC API changed".to_owned(), Some(Ahead::Perhaps)),
                ahead = daemon.watch.changed() => ("a file changed".to_owned(), Some(ahead)),
                () = sleep_until(quiet.unwrap_or_else(|| Instant::now() + BURST)), if burst.is_some() => break,
                () = sleep_until(wake), if burst.is_none() => ("timer".to_owned(), None),
            };
            causes.insert(cause);
            let Some(ahead) = ahead else { break };
            let (first, before) = burst.unwrap_or((Instant::now(), Ahead::Nothing));
            burst = Some((first, before.max(ahead)));
        }
    }
}

impl Daemon {
    /// Drain, then let go of everything in the order it was taken.
    async fn stop(
        self,
        cancel: CancellationToken,
        control: tokio::task::JoinHandle<std::io::Result<()>>,
        why: &str,
    ) {
        tracing::info!(why, "stopping: open requests may finish");
        self.machine.close().await;
        cancel.cancel();
        self.facts.join().await;
        self.node.join().await;
        if let Ok(Err(error)) = control.await {
            tracing::warn!(%error, "the daemon's socket ended");
        }
        tracing::info!("stopped");
    }

    /// The timer, or the earliest retry.
    fn next_look(&self) -> Instant {
        let interval = self.wanted.borrow().reconcile.interval;
        // A tenth of jitter, so that many machines do not move in step.
        let timer = Instant::now() + interval.mul_f64(1.0 + fastrand::f64() / 10.0);
        let unconfirmed = self.rollout.unconfirmed.as_ref().map(|it| monotonic(it.until));
        [self.retry, self.uneasy, self.source.look_again(), unconfirmed]
            .into_iter()
            .flatten()
            .fold(timer, Instant::min)
    }
}

/// Waits for news of the VPC API; for ever while there is none.
async fn news(api: &mut Option<channel::Receiver<ApiStatus>>) {
    let changed = match api {
        Some(api) => api.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending().await
    }
}

/// supervisord's pid where it is our parent: it says so to what it starts.
fn supervised_by() -> Option<u32> {
    std::env::var_os("SUPERVISOR_ENABLED").map(|_| std::os::unix::process::parent_id())
}

/// The same moment on the monotonic clock; a past one is now.
fn monotonic(at: Timestamp) -> Instant {
    let ahead = Duration::try_from(at - Timestamp::now()).unwrap_or_default();
    Instant::now() + ahead
}

/// RFC 3339 for a moment on the monotonic clock.
fn wall(at: Instant) -> Timestamp {
    let ahead = at.saturating_duration_since(Instant::now());
    Timestamp::now() + jiff::SignedDuration::try_from(ahead).unwrap_or_default()
}
