//! One reconcile, from what is wished to what is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Fingerprint;
use super::control::Answer;
use super::tell::{Round, Vpn};
use super::{Daemon, UNEASY};
use crate::apply::{self, Applied, Left, Machine, Order, generation};
use crate::desired::{Desired, Templates, desired};
use crate::facts::Observed;
use crate::node::{self, NodeSettings};
use crate::plan::{Listeners, Plan, Present, ServiceState, plan};
use crate::spec::Spec;

/// Workers that are told to end close their listeners well within this.
const LET_GO: Duration = Duration::from_millis(50);

/// How trying to bring about one spec ended.
pub(super) enum Attempt {
    Live {
        applied: Applied,
        plan: Plan,
        drifted: Vec<String>,
    },
    Failed {
        message: String,
        left: Left,
    },
    /// It failed before and its time has not come again.
    TooSoon(Instant),
}

impl Daemon {
    /// Looks at everything and brings the machine as near to the wish as it will go.
    pub(super) async fn reconcile(&mut self, causes: &BTreeSet<String>, asked: bool) -> Answer {
        if self.machine.end_orphans() {
            tracing::warn!("nginx was killed: its workers are ended, so that the next one gets the ports");
            tokio::time::sleep(LET_GO).await;
        }
        let cause = causes.iter().cloned().collect::<Vec<_>>().join(", ");
        self.watch.look(self.source.path.as_deref());
        let wish = self.source.now();
        if let Ok(spec) = &wish {
            crate::log::set_level(spec.log.level);
            self.wanted.send_if_modified(|now| {
                let new = **now != **spec;
                now.clone_from(spec);
                new
            });
        }
        let mut seen = self.facts.observed.borrow_and_update().clone();
        // The node may just have learned it.
        seen.facts.plain_headscale = node::plain_headscale(&self.state);

        let mut round = Round::new(&cause, &seen, wish.as_ref().err().cloned());
        self.retry = None;
        let wished = wish.as_ref().ok().cloned();
        let fallback = self.live.clone().filter(|live| wished.as_ref() != Some(live));
        for (spec, is_wish) in [(wished, true), (fallback, false)] {
            let Some(spec) = spec else { continue };
            let attempt = self.attempt(&spec, &seen, &cause, asked && is_wish).await;
            let live = matches!(attempt, Attempt::Live { .. });
            if let Attempt::TooSoon(at) = attempt {
                self.retry = Some(self.retry.map_or(at, |other| other.min(at)));
            }
            round.tried(attempt, is_wish);
            if live {
                self.live = Some(spec);
                break;
            }
        }
        self.look_around().await;
        let present = self.present().await;
        let down = present
            .services
            .iter()
            .flatten()
            .any(|(_, service)| service.state != ServiceState::Up);
        self.uneasy = down.then(|| Instant::now() + UNEASY);
        self.api = self.machine.api_status().await;
        let vpn = Vpn {
            node: self.node.status.borrow_and_update().clone(),
            api: self.api.as_mut().map(|api| api.borrow_and_update().clone()),
        };
        self.teller.tell(
            &self.source,
            self.live.as_deref(),
            &present,
            vpn,
            round,
            self.retry,
        )
    }

    async fn attempt(&mut self, spec: &Arc<Spec>, seen: &Observed, cause: &str, asked: bool) -> Attempt {
        let seen = &seen.clone().under(spec);
        let rendered = self.render(spec, seen);
        let desired = match rendered {
            Ok(desired) => desired,
            Err(message) => {
                return Attempt::Failed {
                    message,
                    left: Left::Untouched,
                };
            }
        };
        let what = Fingerprint::of(&desired);
        if let Some(at) = self
            .attempts
            .retry_at(&what)
            .filter(|_| !asked && self.attempts.too_soon(&what))
        {
            return Attempt::TooSoon(at);
        }
        let present = self.present().await;
        self.teller.not_running(&present);
        let plan = plan(&desired, &present);
        let drifted = present
            .generation
            .and_then(|number| generation::manifest(&*self.machine, &self.state, number))
            .map(|manifest| manifest.drifted(&present.files))
            .unwrap_or_default();
        let order = Order {
            cause: cause.to_owned(),
            keep: spec.reconcile.keep.into(),
            probe_timeout: spec.reconcile.probe_timeout,
        };
        self.machine.know(&seen.facts.programs);
        match apply::apply(&*self.machine, &self.state, &desired, &present, &plan, &order).await {
            Ok(applied) => {
                self.attempts.worked(&what);
                self.follow(desired.node);
                Attempt::Live {
                    applied,
                    plan,
                    drifted,
                }
            }
            Err(error) => {
                self.retry = Some(self.attempts.failed(what));
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

    fn render(&self, spec: &Spec, seen: &Observed) -> Result<Desired, String> {
        let templates = match self.source.templates().filter(|dir| dir.is_dir()) {
            Some(dir) => Templates::with_overrides(&dir),
            None => Ok(Templates::builtin()),
        };
        templates
            .and_then(|templates| desired(spec, &seen.facts, &self.state, &self.launch, &templates))
            .map_err(|error| error.to_string())
    }

    async fn present(&self) -> Present {
        let mut present = match apply::look(&*self.machine, &self.state).await {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!(%error, "the state directory cannot be read");
                Present::default()
            }
        };
        present.listeners = match self.machine.listener_settings().await {
            Some(settings) => Listeners::Open(Box::new(settings)),
            None => Listeners::Closed,
        };
        present
    }

    /// Watches what is live now: files by name, programs by pid.
    async fn look_around(&mut self) {
        let state = &self.state;
        let mut folders = vec![state.root().to_owned()];
        if let Ok(Some(number)) = generation::current(&*self.machine, state) {
            let root = generation::dir(state, number);
            let inner = std::fs::read_dir(&root)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            folders.extend(inner.filter(|path| path.is_dir()));
            folders.push(root);
        }
        folders.extend(self.source.templates().filter(|dir| dir.is_dir()));
        self.watch.follow(self.source.path.as_deref(), folders);
        let pids = self.machine.pids().await;
        self.children.follow(pids);
    }
}
