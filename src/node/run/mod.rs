//! The one owner of everything the node does: looks, has it decided (`machine.rs`) and done (`acts.rs`), and tells how
//! it is.

mod acts;

use std::future::pending;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::acts::Now;
use super::credentials::Credentials;
use super::files;
use super::machine::{Do, Goal, Seen, next};
use super::pace::{Clock, Errand, Pace, Paces};
use super::server::Announcement;
use super::tailscale::Tailscale;
use super::view::{Backend, View};
use super::{NodeSettings, NodeStatus, Server, Step};
use crate::names::{AppId, NodeId};
use crate::paths::StateDir;

/// Between looks: while something is about to happen, when it takes longer, and once all is well.
const QUICK: Duration = Duration::from_millis(50);
const STEADY: Duration = Duration::from_millis(500);
const CALM: Duration = Duration::from_secs(2);

/// A wait of this length needs no explanation.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between looks at the peers.
const PEERS: Duration = Duration::from_secs(10);

/// Headscale out of touch for this long is told; for this long, the API is asked where Headscale is now.
const OFFLINE: Duration = Duration::from_secs(10);
const OUT_OF_TOUCH: Duration = Duration::from_secs(120);

pub(super) struct Owner {
    state: StateDir,
    status: watch::Sender<NodeStatus>,
    credentials: Credentials,
    /// For a machine that the platform gave no instance id; kept with the membership.
    made_up: NodeId,
    paces: Paces,
    told: Option<Announcement>,
    heartbeat_due: Instant,
    /// Since when the server says that Headscale does not know this node.
    strange_since: Option<Instant>,
    /// It said so for long enough.
    disowned: bool,
    /// Since when Headscale is out of touch.
    offline: Option<Instant>,
    /// When `vpc/0/*` was last brought up to date, and in which state, since the machine is in the VPN.
    published: Option<(Instant, Backend)>,
    updates_forbidden: bool,
    clock: Clock,
}

impl Owner {
    pub(super) fn new(state: StateDir, status: watch::Sender<NodeStatus>) -> Self {
        Self {
            credentials: Credentials::load(&state),
            state,
            status,
            made_up: NodeId::random(),
            paces: Paces::default(),
            told: None,
            heartbeat_due: Instant::now(),
            strange_since: None,
            disowned: false,
            offline: None,
            published: None,
            updates_forbidden: false,
            clock: Clock::default(),
        }
    }

    /// Until it is cancelled. Nothing here is harmed by being dropped at an `await`: the next look sees how far it came.
    pub(super) async fn run(
        mut self,
        mut settings: watch::Receiver<Option<NodeSettings>>,
        cancel: CancellationToken,
    ) {
        let mut answered = false;
        loop {
            let now = settings.borrow_and_update().clone();
            if now.is_none() && answered {
                self.leave();
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.follow(now.as_ref()) => {}
                () = other(&mut settings, now.as_ref()) => answered = true,
            }
        }
    }

    /// Not a node any more: what it was is not served to anybody. Logging out is left to whoever means it, so that a
    /// machine that becomes a node again is the same one.
    fn leave(&mut self) {
        for result in [files::clear(&self.state.vpc()), self.credentials.drop_key()] {
            if let Err(error) = result {
                tracing::warn!("a former node's file stays: {error}");
            }
        }
        self.told = None;
        self.published = None;
        self.clock = Clock::default();
        self.status.send_if_modified(|status| {
            let former = std::mem::take(status);
            former != *status
        });
    }

    async fn follow(&mut self, settings: Option<&NodeSettings>) {
        let Some(settings) = settings else {
            return pending().await;
        };
        // Somebody changed something: that may be what it takes.
        self.paces = Paces::default();
        loop {
            let pause = self.turn(settings).await;
            sleep(pause).await;
        }
    }

    /// One look and one act. Returns how long to pause.
    async fn turn(&mut self, settings: &NodeSettings) -> Duration {
        let Some(app) = settings.app_id else {
            let why = "this machine's app id is not known yet: the guest agent has not told it";
            self.show(Step::Identity, Some(why.to_owned()), None);
            return STEADY;
        };
        let Some(program) = settings.tailscale.clone() else {
            let why = "the command `tailscale` is not installed, or tailscale.client does not name it";
            self.show(Step::Tailscaled, Some(why.to_owned()), None);
            return STEADY;
        };
        let goal = self.goal(settings, app);
        let tailscale = Tailscale {
            program,
            socket: self.state.tailscale_socket(),
        };
        let full = self.published.is_none_or(|(at, _)| at.elapsed() >= PEERS);
        let looked = tailscale.look(full).await;
        let view = looked.as_ref().ok();
        self.note(view, full);
        let act = next(
            &goal,
            &Seen {
                membership: self.credentials.membership(),
                key: self.credentials.key_file().is_some(),
                tailscaled: looked.as_ref().map_err(ToString::to_string),
                disowned: self.disowned,
                out_of_touch: self.offline.is_some_and(|since| since.elapsed() >= OUT_OF_TOUCH),
                published: !full,
                publish_later: self.paces.of(Errand::Publishing).wait().is_some(),
                step: self.clock.step(),
                told: self.told.as_ref(),
                due: self.heartbeat_due <= Instant::now(),
            },
        );
        let now = Now {
            goal: &goal,
            tailscale: &tailscale,
            view,
        };
        self.take(&now, act).await
    }

    fn goal<'a>(&self, settings: &'a NodeSettings, app: AppId) -> Goal<'a> {
        let kept = || self.credentials.membership().map(|it| it.instance_id.clone());
        Goal {
            settings,
            server: match settings.server {
                Server::App(server) => server,
                Server::SameApp | Server::Here { .. } => app,
            },
            id: settings
                .instance_id
                .map(NodeId::from)
                .or_else(kept)
                .unwrap_or_else(|| self.made_up.clone()),
        }
    }

    /// Takes note of what is seen, for `status` and for later.
    fn note(&mut self, view: Option<&View>, full: bool) {
        let up = view.filter(|view| view.is_up());
        self.published = self
            .published
            .filter(|(_, backend)| up.is_some_and(|view| view.backend == *backend));
        self.offline = match view {
            Some(view) if view.online => None,
            _ => self.offline.or_else(|| Some(Instant::now())),
        };
        let address = up.and_then(|view| view.address);
        let dns_name = up
            .and_then(|view| view.dns_name.as_ref())
            .map(ToString::to_string);
        let published = &mut self.published;
        self.status.send_if_modified(|status| {
            let mut news = status.address != address || status.dns_name != dns_name;
            if news {
                *published = None;
            }
            status.address = address;
            status.dns_name = dns_name;
            let peers = match up {
                Some(view) if full => view.peers.clone(),
                Some(_) => return news,
                None => Vec::new(),
            };
            news |= status.peers != peers;
            status.peers = peers;
            news
        });
    }

    /// Does `act`, unless it failed a moment ago. Returns how long to pause.
    async fn take(&mut self, now: &Now<'_>, act: Do) -> Duration {
        let step = act.step();
        if let Do::Wait(_, why) = act {
            let explain = self.clock.enter(step) > PATIENCE;
            self.show(step, why.filter(|_| explain), None);
            return if explain { STEADY } else { QUICK };
        }
        if matches!(act, Do::Announce(..) | Do::Rest) {
            // In the VPN: whatever failed on the way here is over.
            *self.paces.of(Errand::Joining) = Pace::default();
        }
        let errand = act.errand();
        let wait = self.paces.of(errand).wait();
        self.tell(step, errand, now);
        if let Some(wait) = wait {
            return wait.min(STEADY);
        }
        let is_rest = act == Do::Rest;
        let done = match act {
            Do::Wait(..) => Ok(()),
            Do::Register(_) => self.register(now).await,
            Do::LogIn(up) => self.log_in(now, &up).await,
            Do::Adjust(up) => self.adjust(now, &up).await,
            Do::Publish(_) => self.publish(now),
            Do::Announce(_, announcement) => self.announce(now, announcement).await,
            Do::Rest => self.rest(now).await,
        };
        match done {
            Ok(()) => self.paces.of(errand).succeeded(),
            Err(error) => {
                self.paces.of(errand).failed(error.to_string());
                self.tell(step, errand, now);
            }
        }
        match is_rest {
            true if now.goal.settings.node_type.is_some() => {
                CALM.min(self.heartbeat_due.saturating_duration_since(Instant::now()))
            }
            true => CALM,
            false => Duration::ZERO,
        }
    }

    /// Tells the step, and what is wrong: with the act itself, else with what goes on beside it.
    fn tell(&mut self, step: Step, errand: Errand, now: &Now<'_>) {
        let beside: &[Errand] = match step {
            Step::Joined => &[Errand::Announcing, Errand::Publishing],
            _ => &[],
        };
        let mut errands = std::iter::once(&errand).chain(beside);
        let failed = errands.find_map(|errand| self.paces.of(*errand).failure());
        let (problem, retry_at) = match failed {
            Some((problem, retry_at)) => (Some(problem), Some(retry_at)),
            None => (self.out_of_touch(step, now), None),
        };
        self.show(step, problem, retry_at);
    }

    /// A node that lost Headscale stays in the VPN, and says so.
    fn out_of_touch(&self, step: Step, now: &Now<'_>) -> Option<String> {
        self.offline
            .filter(|since| step == Step::Joined && since.elapsed() >= OFFLINE)?;
        let why = now
            .view
            .and_then(View::trouble)
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        Some(format!(
            "Headscale does not answer; this node stays in the VPN meanwhile{why}"
        ))
    }

    /// Tells how it is. Whoever watches wakes for another step or another problem only.
    fn show(&mut self, step: Step, problem: Option<String>, retry_at: Option<Timestamp>) {
        self.clock.enter(step);
        let took = self.clock.took();
        self.status.send_if_modified(|status| {
            status.retry_at = retry_at;
            if (status.step, &status.problem) == (step, &problem) && status.since.is_some() {
                return false;
            }
            if let Some(problem) = problem
                .as_ref()
                .filter(|new| status.problem.as_ref() != Some(new))
            {
                tracing::warn!(?step, "{problem}");
            }
            if status.step != step || status.since.is_none() {
                status.since = Some(Timestamp::now());
                match step {
                    Step::Joined => {
                        status.took = took.to_vec();
                        tracing::info!(address = ?status.address, "this node is in the VPN");
                    }
                    step => tracing::info!("{}", step.words()),
                }
            }
            status.step = step;
            status.problem = problem;
            true
        });
    }
}

/// Returns once there are other settings than `now`; `None` given again is news as well, as it is an answer.
async fn other(settings: &mut watch::Receiver<Option<NodeSettings>>, now: Option<&NodeSettings>) {
    loop {
        if settings.changed().await.is_err() {
            // Whoever gave them is gone: they stand until we are cancelled.
            return pending().await;
        }
        if now.is_none() || settings.borrow_and_update().as_ref() != now {
            return;
        }
    }
}
