//! The way back when a new state failed: by the same steps, to the last one that was proven.

use std::collections::BTreeMap;

use super::generation;
use super::journal::Journal;
use super::machine::Machine;
use super::switch::discard;
use super::{Failure, Goal, Order, carry_out};
use crate::desired::ListenerSettings;
use crate::paths::StateDir;
use crate::plan::{self, Listeners, Present, Service, ServiceState};

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
    let journal = Journal {
        from: Some(good),
        to: failed,
        kept: order.again == Some(failed) || owed.as_ref().is_some_and(|journal| journal.kept),
        rolling_back: true,
        failed: owed.map(|journal| journal.failed).unwrap_or_default(),
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
    let services = machine.services().await.map(|now| ours(now, before));
    if services.is_none() && before.services.is_some() {
        // What the failed apply stopped would stay so, and nobody would owe it anything: the journal stays.
        return Err(Failure::Unproven("supervisord does not answer".to_owned()));
    }
    let present = Present {
        generation: Some(failed),
        files: generation::files(machine, state, failed),
        listeners: before.listeners.clone(),
        services,
        owed: true,
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
    carry_out(machine, &plan, &present, &goal, order, None).await?;
    discard(
        machine,
        state,
        &journal,
        &[&[good], order.needed.as_slice()].concat(),
    )?;
    Ok(Journal::clear(machine, state)?)
}

/// What was up before and is stopped now was stopped by the apply that failed, or by the one before it that was cut
/// off, and not by an operator.
fn ours(mut now: BTreeMap<String, Service>, before: &Present) -> BTreeMap<String, Service> {
    for (name, service) in &mut now {
        let earlier = before.services.as_ref().and_then(|services| services.get(name));
        let was_up = earlier.is_some_and(|service| service.state == ServiceState::Up);
        if (was_up || before.owed) && service.state == ServiceState::StoppedByOperator {
            service.state = ServiceState::Down;
        }
    }
    now
}
