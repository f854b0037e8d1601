//! The way back when a new state failed: by the same steps, to the last one that was proven.

use std::collections::BTreeMap;
use std::time::Duration;

use super::act::{Goal, already_heard, carry_out};
use super::generation;
use super::journal::Journal;
use super::machine::Machine;
use super::switch::discard;
use super::{Failure, Order};
use crate::desired::ListenerSettings;
use crate::paths::StateDir;
use crate::plan::{self, ActionKind, Listeners, Present};

/// The same mechanism backwards: the earlier generation's files are the desired ones now.
pub(super) async fn roll_back<M: Machine>(
    machine: &M,
    state: &StateDir,
    before: &Present,
    failed_listeners: &ListenerSettings,
    failed: u32,
    good: u32,
    order: &Order,
) -> Result<(), Failure> {
    let owed = Journal::read(machine, state)?;
    let failed_files = generation::files(machine, state, failed);
    let mut held = generation::nginx_sockets(machine, state, failed, &failed_files);
    held.extend(owed.iter().flat_map(|journal| &journal.held));
    let journal = Journal {
        from: Some(good),
        to: failed,
        kept: order.again == Some(failed) || owed.as_ref().is_some_and(|journal| journal.kept),
        rolling_back: true,
        failed: owed
            .as_ref()
            .map(|journal| journal.failed.clone())
            .unwrap_or_default(),
        held,
        ended: match &owed {
            Some(owed) => owed.ended.clone(),
            None => Some(BTreeMap::new()),
        },
        cause: order.cause.clone(),
    };
    journal.write(machine, state)?;
    generation::switch(machine, state, good)?;
    // Without it nothing could be proven.
    let manifest = generation::manifest(machine, state, good)
        .ok_or_else(|| Failure::Unproven(format!("generation {good} has no manifest that can be read")))?;
    let mut good_files = generation::files(machine, state, good);
    for path in manifest.files.keys() {
        // What cannot be read at the moment is not gone: its reader is told, as of any change.
        good_files.entry(path.clone()).or_default();
    }
    let mut services = machine.services().await;
    services.iter_mut().for_each(|services| journal.claim(services));
    if services.is_none() && before.services.is_some() {
        // What the failed apply stopped would stay so, and nobody would owe it anything: the journal stays.
        return Err(Failure::Unproven("supervisord does not answer".to_owned()));
    }
    let present = Present {
        generation: Some(failed),
        files: failed_files,
        modes: BTreeMap::new(),
        headscale_read: None,
        listeners: before.listeners.clone(),
        services,
        owed: true,
        held: journal.held.clone(),
    };
    let plan = plan::back(&present, &good_files);
    let (probes, tag) = (manifest.probes, manifest.tag);
    // What served before serves again; listeners that were opened by the failed apply stay as they are.
    let listeners = match &before.listeners {
        Listeners::Open(listeners) => listeners,
        Listeners::Closed | Listeners::NotOurs => failed_listeners,
    };
    let goal = Goal {
        listeners,
        probes: &probes,
        tag: &tag,
    };
    // Where it was not come to, nobody is to be refused for it.
    let restarts = plan
        .actions
        .iter()
        .any(|action| action.kind == ActionKind::RestartNginx);
    let done = match restarts {
        true => already_heard(machine, &plan, &goal, Duration::ZERO).await,
        false => None,
    };
    carry_out((machine, state), &plan, &present, &goal, order, done).await?;
    discard(
        machine,
        state,
        &journal,
        &[&[good], order.needed.as_slice()].concat(),
    )?;
    Ok(Journal::clear(machine, state)?)
}
