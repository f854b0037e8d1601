//! What is asked before anything is touched.

use std::net::SocketAddr;

use super::Failure;
use super::generation;
use super::machine::Machine;
use crate::desired::{Desired, Probe, Program};
use crate::paths::StateDir;
use crate::plan::{Listeners, Present, ServiceState};

/// What runs is never given up because a file or a fact is gone, nor for something that is not there.
pub(super) fn nothing_is_lost(desired: &Desired, present: &Present) -> Result<(), Failure> {
    for (program, why) in &desired.missing {
        let name = program.name();
        if *program == Program::Nginx
            && let Listeners::Open(open) = &present.listeners
            && open.mesh.front.is_some()
        {
            let (name, why) = ("the built-in front", why.clone());
            return Err(Failure::Lost { name, why });
        }
        let service = present.services.as_ref().and_then(|services| services.get(name));
        if service.is_some_and(|service| service.state == ServiceState::Up) {
            let why = why.clone();
            return Err(Failure::Lost { name, why });
        }
    }
    Ok(())
}

/// nginx itself ignores a taken port at reload, so it is asked for here, before anything changes.
pub(super) fn ports_are_free<M: Machine>(
    machine: &M,
    state: &StateDir,
    desired: &Desired,
    present: &Present,
) -> Result<(), Failure> {
    let nginx = nginx_pid(present);
    // The daemon has a supervisord, which may only be late to say that nginx runs.
    let unheard = present.services.is_none() && present.listeners != Listeners::NotOurs;
    let held: Vec<Probe> = match present.generation {
        Some(number) if nginx.is_some() || unheard => generation::manifest(machine, state, number)
            .map(|m| m.probes)
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    let ours = match &present.listeners {
        Listeners::Open(open) => open.addresses(),
        Listeners::Closed | Listeners::NotOurs => Vec::new(),
    };
    let fronts = desired
        .probes
        .iter()
        .filter(|probe| probe.of == Program::Nginx)
        .filter(|probe| !ours.iter().any(|ours| is_left_to(ours, probe)))
        .filter(|probe| !held.iter().any(|old| old.listen == probe.listen))
        .map(|probe| (probe.key.as_str(), probe.listen));
    // Before there is a daemon, its ports are looked at as well; later it opens them itself.
    let no_daemon = present.listeners == Listeners::NotOurs && present.services.is_none();
    let built_in = desired.listeners.addresses();
    for (key, addr) in fronts.chain(built_in.into_iter().filter(|_| no_daemon)) {
        if let Some(why) = machine.why_not(addr, nginx) {
            let key = key.to_owned();
            return Err(Failure::PortUnusable { key, addr, why });
        }
    }
    Ok(())
}

/// A listener of the daemon as the front: it closes before nginx opens the same port, at this address or one that overlaps.
fn is_left_to((key, addr): &(&str, SocketAddr), probe: &Probe) -> bool {
    ["mesh.http_listen", "mesh.https_listen"].contains(key) && addr.port() == probe.listen.port()
}

pub(super) fn nginx_pid(present: &Present) -> Option<i32> {
    let service = present.services.as_ref()?.get(Program::Nginx.name())?;
    service.pid.filter(|_| service.state == ServiceState::Up)
}
