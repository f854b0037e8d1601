//! One reconcile, from what is wished to what is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::control::Answer;
use super::drift::{self, Found};
use super::failed::Fingerprint;
use super::look::{before, bury, known};
use super::source::Wish;
use super::told::{Around, Round};
use super::{Daemon, UNEASY};
use crate::apply::{self, Applied, Left, Machine, Order, generation};
use crate::desired::{Desired, OVERRIDES, desired};
use crate::facts::Observed;
use crate::node::{self, NodeSettings};
use crate::plan::{After, Before, Plan, Present, plan};
use crate::spec::{Loaded, Spec};

/// Workers that are told to end close their listeners well within this.
const LET_GO: Duration = Duration::from_millis(50);

/// Whose settings a round tries to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Those of the file and the environment.
    File,
    /// Those of an earlier generation, because an operator wants it so.
    Held,
    /// Those that served last, because the others cannot.
    LastGood,
}

/// How trying to bring about one wish ended.
pub enum Attempt {
    Live {
        applied: Applied,
        plan: Plan,
        drifted: Vec<Found>,
        /// How the machine is, where that is known.
        present: Option<Box<Present>>,
    },
    Failed {
        message: String,
        left: Left,
    },
    /// It failed before and its time has not come again.
    TooSoon(Instant),
}

/// What was rendered, and from what.
pub(super) struct Rendered {
    loaded: Arc<Loaded>,
    overrides: Vec<(&'static str, String)>,
    seen: Observed,
    desired: Arc<Desired>,
}

impl Daemon {
    /// Looks at everything and brings the machine as near to the wish as it will go.
    pub(super) async fn reconcile(&mut self, causes: &BTreeSet<String>, asked: bool) -> Answer {
        let began = Instant::now();
        let answer = self.look_and_act(causes, asked).await;
        self.durations.observe(began.elapsed());
        answer
    }

    async fn look_and_act(&mut self, causes: &BTreeSet<String>, asked: bool) -> Answer {
        if self.machine.end_orphans() {
            tracing::warn!("nginx was killed: its workers are ended, so that the next one gets the ports");
            tokio::time::sleep(LET_GO).await;
        }
        let cause = causes.iter().cloned().collect::<Vec<_>>().join(", ");
        self.watch
            .look(self.source.path.as_deref(), self.source.templates().as_deref());
        self.source.count();
        let file = self.source.now().map(|loaded| self.source.wish(loaded));
        let wished = match self.decide(file.as_ref().ok()) {
            Some(held) => Some((held, Aim::Held)),
            None => file.as_ref().ok().map(|wish| (wish.clone(), Aim::File)),
        };
        if let Some((wish, _)) = &wished {
            let spec = wish.spec();
            crate::log::set_level(spec.log.level);
            self.wanted.send_if_modified(|now| {
                let new = **now != *spec;
                if new {
                    *now = Arc::new(spec.clone());
                }
                new
            });
            self.facts.has_scanned(spec).await;
        }
        let mut seen = self.facts.observed.borrow_and_update().clone();
        // The node may just have learned it.
        seen.facts.plain_headscale = node::plain_headscale(&self.state);

        let mut round = Round::new(&cause, &seen, file.err());
        self.retry = None;
        let last_good = self.live.clone().map(|live| (live, Aim::LastGood));
        let mut present = None;
        for (wish, aim) in wished.into_iter().chain(last_good) {
            let asked = asked && aim != Aim::LastGood;
            let mut attempt = self.attempt(&wish, aim, &seen, &cause, asked).await;
            let live = match &mut attempt {
                Attempt::Live {
                    applied,
                    present: seen,
                    ..
                } => {
                    present = seen.take();
                    Some(applied.generation)
                }
                Attempt::Failed { .. } => None,
                Attempt::TooSoon(at) => {
                    self.retry = Some(self.retry.map_or(*at, |other| other.min(*at)));
                    None
                }
            };
            if live.is_none() && aim == Aim::File {
                let served = self.live.as_ref().map(|live| live.input(""));
                round.again = served == Some(wish.input(""));
            }
            round.tried(attempt, aim);
            if let Some(number) = live {
                // The templates beside the file may change before the next look; the generation has its own.
                let overrides = generation::dir(&self.state, number).join(OVERRIDES);
                let loaded = wish.loaded;
                self.live = Some(Wish {
                    loaded,
                    overrides: Some(overrides),
                });
                break;
            }
        }
        self.look_around();
        let mut present = match present {
            Some(present) => *present,
            None => self.present().await.unwrap_or_else(|error| {
                tracing::warn!("the state directory cannot be read: {error}");
                Present::default()
            }),
        };
        self.follow_programs(&present).await;
        bury(&mut present);
        self.ask_nginx(&mut present).await;
        let mut services = present.services.iter().flatten();
        // Our parent lives: what it did not answer in time is not to wait for the timer.
        let unheard = self.children.is_of_supervisord() && (present.services.is_none() || present.owed);
        let uneasy = services.any(|(_, service)| !service.is_steady()) || (unheard && self.retry.is_none());
        self.uneasy = uneasy.then(|| Instant::now() + UNEASY);
        self.api = self.machine.api_status().await;
        self.programs.look(&present);
        // One that was just started has read what is there now.
        self.programs.headscale_read(&present);
        round.drifted.extend(self.programs.back(&present));
        let around = Around {
            rollout: &self.rollout,
            node: self.node.status.borrow_and_update().clone(),
            api: self.api.as_mut().map(|api| api.borrow_and_update().clone()),
        };
        let live = round.live.as_ref().map(|(applied, ..)| applied.clone());
        let answer = self.teller.tell(
            &self.source,
            self.live.as_ref().map(Wish::spec),
            &present,
            around,
            round,
            self.retry,
        );
        if let (Some(applied), Some(wish)) = (live, &self.live) {
            let (keep, needed) = (wish.spec().reconcile.keep, self.rollout.needed());
            apply::prune(&*self.machine, &self.state, keep.into(), &needed, &applied);
        }
        answer
    }

    /// The earlier settings that are held, if any are; what changes in that is kept on disk.
    fn decide(&mut self, file: Option<&Wish>) -> Option<Wish> {
        let before = self.rollout.clone();
        let text = self.source.digest();
        let held = self.rollout.decide(&*self.machine, &self.state, text, file);
        if before.unconfirmed.is_some() && self.rollout.unconfirmed.is_none() && self.rollout.held.is_some() {
            self.teller.count(|counters| counters.not_confirmed += 1);
        }
        if self.rollout != before {
            self.keep_rollout();
        }
        held
    }

    /// Without a place on disk a decision holds until the daemon ends.
    pub(super) fn keep_rollout(&self) {
        if let Err(error) = self.rollout.write(&*self.machine, &self.state) {
            tracing::warn!(%error, "what is held or unconfirmed would be forgotten by a restart");
        }
    }

    async fn attempt(&mut self, wish: &Wish, aim: Aim, seen: &Observed, cause: &str, asked: bool) -> Attempt {
        let spec = wish.spec();
        let seen = &seen.clone().under(spec);
        let desired = match self.render(wish, seen) {
            Ok(desired) => desired,
            Err(message) => {
                return Attempt::Failed {
                    message,
                    left: Left::Untouched,
                };
            }
        };
        let what = (!self.attempts.is_empty()).then(|| Fingerprint::of(&desired));
        if let Some(what) = &what
            && let Some(at) = self.attempts.retry_at(what)
            && !asked
            && self.attempts.too_soon(what)
        {
            return Attempt::TooSoon(at);
        }
        let mut present = match self.present().await {
            Ok(present) => present,
            // What cannot be seen is not to be replaced.
            Err(error) => {
                self.retry = Some(self.attempts.failed(Fingerprint::of(&desired)));
                return Attempt::Failed {
                    message: format!("the state directory cannot be read: {error}"),
                    left: Left::Untouched,
                };
            }
        };
        self.teller.not_running(&present);
        self.programs.look(&present);
        present.headscale_read = self.programs.headscale_read(&present);
        let mut plan = plan(&desired, &present);
        let before = match plan.is_empty() {
            true => Before::default(),
            false => before(&*self.machine, &self.state, &present, self.live.as_ref()),
        };
        let order = Order {
            cause: cause.to_owned(),
            keep: spec.reconcile.keep.into(),
            needed: self.rollout.needed(),
            again: self
                .rollout
                .held
                .as_ref()
                .filter(|_| aim == Aim::Held)
                .map(|held| held.generation),
            probe_timeout: spec.reconcile.probe_timeout,
        };
        let drifted = match plan.is_empty() {
            true => Vec::new(),
            false => {
                let (machine, made) = (&*self.machine, self.made);
                drift::on_disk(machine, &self.state, &present, &plan, &before.drifted, made)
            }
        };
        self.machine.know(&seen.facts.programs);
        match apply::apply(&*self.machine, &self.state, &desired, &present, &plan, &order).await {
            Ok(applied) => {
                if let Some(what) = &what {
                    self.attempts.worked(what);
                }
                self.made = Some(applied.generation);
                if applied.changed {
                    self.programs.acted();
                    // It is live: to find out why takes nothing from it any more.
                    let after = After {
                        spec,
                        facts: &seen.facts,
                        source: &|key| (aim == Aim::File).then(|| wish.loaded.source(key)),
                        render: &|spec| self.render_spec(spec, wish, seen).ok(),
                    };
                    plan.find_causes(&desired, &present, &before, &after);
                }
                self.follow(desired.node.clone());
                Attempt::Live {
                    present: known(present, &applied, &desired, &plan).map(Box::new),
                    applied,
                    plan,
                    drifted,
                }
            }
            Err(error) => {
                self.programs.acted();
                self.retry = Some(self.attempts.failed(Fingerprint::of(&desired)));
                Attempt::Failed {
                    message: error.failure.to_string(),
                    left: error.left,
                }
            }
        }
    }

    /// Tells the node what it is to do; the first time also when that is nothing.
    fn follow(&mut self, node: Option<NodeSettings>) {
        let first = !std::mem::replace(&mut self.told, true);
        self.joining.send_if_modified(|now| {
            let news = first || *now != node;
            *now = node;
            news
        });
    }

    /// What was rendered last, where it was from the same.
    fn render(&mut self, wish: &Wish, seen: &Observed) -> Result<Arc<Desired>, String> {
        let templates = wish.templates().map_err(|error| error.to_string())?;
        let overrides = templates.overrides();
        let overrides: Vec<_> = overrides.map(|(name, text)| (name, text.to_owned())).collect();
        if let Some(last) = &self.rendered
            && Arc::ptr_eq(&last.loaded, &wish.loaded)
            && last.overrides == overrides
            && !last.seen.differs_from(seen)
        {
            return Ok(Arc::clone(&last.desired));
        }
        let rendered = desired(wish.spec(), &seen.facts, &self.state, &self.launch, &templates);
        let desired = Arc::new(rendered.map_err(|error| error.to_string())?);
        self.rendered = Some(Rendered {
            loaded: Arc::clone(&wish.loaded),
            overrides,
            seen: seen.clone(),
            desired: Arc::clone(&desired),
        });
        Ok(desired)
    }

    /// Other settings by the same templates.
    fn render_spec(&self, spec: &Spec, wish: &Wish, seen: &Observed) -> Result<Desired, String> {
        wish.templates()
            .and_then(|templates| desired(spec, &seen.facts, &self.state, &self.launch, &templates))
            .map_err(|error| error.to_string())
    }
}
