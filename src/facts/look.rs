//! One-shot looks at the machine, for commands that do not stay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ask::{ask_agent, ask_gateway};
use super::{Observed, ProgramScanner, Topic, Watcher, host_facts};
use crate::node;
use crate::paths::StateDir;
use crate::spec::Spec;

/// What is known after at most `patience`. Inert: reads, asks the agent who we are and the gateways for their
/// domain; writes nothing, fetches no certificate.
pub async fn look(spec: &Spec, state: &StateDir, patience: Duration) -> Observed {
    let (mut observed, _) = Observed::recalled(spec, state);
    let root = observed.identity.as_ref().map(|identity| identity.root.clone());
    let scanner = ProgramScanner::recalled(state);
    let (agent, gateway, programs) = tokio::join!(
        timeout(patience, ask_agent(spec)),
        timeout(patience, ask_gateway(spec, root.as_ref())),
        scanner.scan(spec),
    );
    let impatient = |who: &str| Some(format!("{who} did not answer within {}s", patience.as_secs_f32()));
    match agent {
        Ok(answer) => observed.take_agent(answer, None),
        Err(_) => observed.set_problem(Topic::Agent, impatient("the guest agent"), None),
    }
    match gateway {
        Ok(answer) => observed.take_gateway(answer, None),
        Err(_) => observed.set_problem(Topic::Gateway, impatient("the gateways"), None),
    }
    observed.facts.programs = programs;
    observed.facts.host = host_facts();
    observed.facts.plain_headscale = node::plain_headscale(state);
    observed
}

/// What is known for a first reconcile: like [`look`], but retries until `patience` is over, and fetches and
/// stores a certificate when there is none or it is due.
///
/// Returns as soon as everything that can be waited for is there; what is missing is in the problems.
pub async fn first(spec: &Arc<Spec>, state: &StateDir, patience: Duration) -> Observed {
    let (_keep, spec) = watch::channel(spec.clone());
    let mut watcher = Watcher::start(spec, state.clone(), CancellationToken::new()).await;
    // The patience being over is no error: then there is what there is.
    let _ = timeout(patience, watcher.observed.wait_for(settled)).await;
    let observed = watcher.observed.clone();
    watcher.join().await;
    observed.borrow().clone()
}

/// Nothing more is to be expected soon.
fn settled(observed: &Observed) -> bool {
    let facts = &observed.facts;
    let asked = |what| observed.problem(what).is_some();
    let no_agent = facts.agent.is_none() && asked(Topic::Agent);
    let fresh_app_id = facts.app_id.as_ref().is_some_and(|fact| !fact.is_remembered());
    let ours = observed.identity.as_ref().is_some_and(|identity| {
        identity.app_id.is_none() || identity.app_id == facts.app_id.as_ref().map(|fact| fact.value)
    });
    let gateway = facts.gateway.as_ref().is_some_and(|fact| !fact.is_remembered()) || asked(Topic::Gateway);
    gateway && (no_agent || (fresh_app_id && ours))
}
