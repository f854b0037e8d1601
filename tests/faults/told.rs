//! What `status` says after a round, by the daemon's own function, is what is so.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dstack_vpc::api::ApiStatus;
use dstack_vpc::apply::{Applied, Left, generation};
use dstack_vpc::facts::Observed;
use dstack_vpc::identity::Identity;
use dstack_vpc::node::{NodeStatus, Step};
use dstack_vpc::plan::{ServiceState, plan};
use dstack_vpc::reconcile::status::{ConditionKind, Status};
use dstack_vpc::reconcile::{Aim, Around, Attempt, Rollout, Round};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::edits::{Made, Wish};
use super::story::{Failed, Story, bytes};

impl<'a> Story<'a> {
    /// Ends the round that tried this wish as the daemon does, and holds what is told against the machine.
    pub async fn tells(&mut self, wish: Wish<'a>, outcome: Result<Applied, Failed>) {
        let desires = self.desires;
        let made = desires.made(wish);
        let seen = observed(made);
        let mut round = Round::new("test", &seen, None);
        let mut failure = None;
        let proven = outcome.as_ref().is_ok_and(|applied| applied.proven);
        let mut live = Some(wish);
        let before = self.status.config.live.clone();
        match outcome {
            Ok(applied) => round.tried(self.worked(applied, made).await, Aim::File),
            Err(failed) => {
                let (message, left) = words(failed);
                failure = Some((message.clone(), left.clone()));
                round.tried(Attempt::Failed { message, left }, Aim::File);
                live = self.live;
            }
        }
        if let (Some(last), true) = (live, failure.is_some()) {
            let applied = self.reconcile(last).await.expect("nothing goes wrong any more");
            let attempt = self.worked(applied, desires.made(last)).await;
            round.tried(attempt, Aim::LastGood);
        }
        let present = self.present().await.expect("a disk that works");
        let around = Around {
            rollout: &Rollout::default(),
            node: NodeStatus {
                step: Step::Joined,
                address: Some(Ipv4Addr::LOCALHOST),
                ..NodeStatus::default()
            },
            api: made.loaded.spec.role.server.then(ApiStatus::default),
        };
        let spec = live.map(|live| &desires.made(live).loaded.spec);
        let status = std::mem::take(&mut self.status);
        let told = status.told(&made.source, spec, &present, around, &round, None);
        self.status = told.status;

        self.told_the_truth(made);
        let config = &self.status.config;
        assert_eq!(config.observed, made.source.digest());
        match &failure {
            None => {
                assert_eq!(self.status.last_error, None);
                assert_eq!(told.answer.live, proven, "{:?}", told.answer);
                assert_eq!(holds(&self.status, ConditionKind::Configured), proven);
                assert_eq!(&config.live, if proven { &config.observed } else { &before });
            }
            Some((message, left)) => {
                assert_eq!(config.live, before);
                let error = self.status.last_error.as_ref().expect("an error");
                assert!(error.message.starts_with(message), "{error:?}");
                let last = self.status.history.last().expect("an event");
                let outcome = match left {
                    Left::Untouched => "refused",
                    Left::RolledBackTo(_) => "rolled back",
                    Left::Unproven(_) => "failed",
                };
                assert_eq!(last.outcome, outcome);
                assert!(!told.answer.live && told.answer.message.starts_with(message));
                assert!(!holds(&self.status, ConditionKind::Configured));
            }
        }
    }

    async fn worked(&self, applied: Applied, made: &Made) -> Attempt {
        let present = self.present().await.expect("a disk that works");
        Attempt::Live {
            applied,
            plan: plan(&made.desired, &present),
            drifted: Vec::new(),
            present: None,
        }
    }

    /// Whatever else is told, this has to agree with the machine.
    fn told_the_truth(&self, made: &Made) {
        use ConditionKind::{Configured, Degraded, Ready, ServicesHealthy};
        let (status, world) = (&self.status, self.model.world());
        assert_eq!(status.generation, self.current());
        assert_eq!(status.owed, self.is_owed());
        assert_eq!(status.owed_actions.is_empty(), !status.owed, "{status:#?}");
        let files = status
            .generation
            .map(|number| generation::files(&self.disk(), self.desires.state(), number));
        let unserved = self.unserved();
        let serves = unserved.is_empty() && !status.owed;
        let wished = serves
            && files == Some(bytes(&made.desired))
            && world.listeners.as_ref() == Some(&made.desired.listeners);
        assert!(wished || !holds(status, Configured), "{unserved:#?}, {status:#?}");
        assert!(serves || !holds(status, Ready), "{unserved:#?}, {status:#?}");
        let run = |programs: std::collections::BTreeMap<String, (String, ServiceState)>| {
            programs.values().all(|(_, state)| *state == ServiceState::Up)
        };
        assert_eq!(holds(status, ServicesHealthy), world.supervisord.is_some_and(run));
        // Nothing else is wrong with this machine.
        assert_eq!(holds(status, Ready), serves, "{status:#?}");
        assert_eq!(holds(status, Degraded), !holds(status, Configured), "{status:#?}");
        for condition in &status.conditions {
            assert!(
                !condition.reason.is_empty() && !condition.message.is_empty(),
                "{condition:?}"
            );
        }
    }
}

fn holds(status: &Status, kind: ConditionKind) -> bool {
    let condition = status.condition(kind);
    condition
        .unwrap_or_else(|| panic!("{kind:?} is not told"))
        .holds()
}

/// As the daemon says it.
fn words(failed: Failed) -> (String, Left) {
    match failed {
        Failed::Apply(error) => (error.failure.to_string(), error.left),
        Failed::Look(error) => (
            format!("the state directory cannot be read: {error}"),
            Left::Untouched,
        ),
        Failed::Recover(error) => panic!("the daemon did not start: {error}"),
    }
}

/// A machine with a certificate.
fn observed(made: &Made) -> Observed {
    let identity = Identity {
        dir: made
            .facts
            .identity
            .as_ref()
            .expect("a certificate")
            .value
            .dir
            .clone(),
        key: PrivatePkcs8KeyDer::from(Vec::new()).into(),
        chain: Vec::new(),
        root: Vec::new().into(),
        app_id: made.facts.app_id.as_ref().map(|fact| fact.value),
        instance_id: None,
        not_after: SystemTime::now() + Duration::from_secs(3600),
    };
    Observed {
        facts: made.facts.clone(),
        identity: Some(Arc::new(identity)),
        ..Observed::default()
    }
}
