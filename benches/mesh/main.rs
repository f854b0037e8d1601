//! The mesh against nginx and haproxy, on this computer: `make bench`, or `BENCH=quick make bench` while tuning.
//!
//! Everybody does the same work in the same run, taking turns, so that what else the computer does hits all alike.
//! `BENCH_BINARY` names another dstack-vpc to be measured, `BENCH_BEFORE` one to compare it with.

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
mod load;
mod peers;
mod proc;
mod scene;
mod table;

use std::path::PathBuf;

use anyhow::Result;
use common::agent::Agent;
use common::machine::{Machine, Plan};
use common::{CLIENT_APP, SERVER_APP};
use load::Load;
use peers::{Certificates, Hop, Part, Peer, Server};
use scene::{Pace, Scene};

#[tokio::main]
async fn main() -> Result<()> {
    let pace = match std::env::var("BENCH").as_deref() {
        Ok("quick") => Pace::QUICK,
        _ => Pace::FULL,
    };
    let agent = Agent::start().await;
    let certificates = Certificates::of(&agent)?;
    let server = Server::start(&certificates).await?;
    let outbound = outbound(&agent, &certificates, &server, &pace).await?;
    println!("{}", table::of(&outbound));
    Ok(())
}

/// Only the hop: the server answers by itself.
async fn outbound(agent: &Agent, certificates: &Certificates, server: &Server, pace: &Pace) -> Result<Scene> {
    let to = server.tls.addr();
    let nginx = Hop::nginx(certificates, to).await?;
    let haproxy = Hop::haproxy(certificates, to).await?;
    let behind = Part::new("server", server.program.pids());
    let peer = |name: &str, addr, pids| Peer {
        name: name.to_owned(),
        addr,
        parts: vec![Part::new("hop", pids), behind.clone()],
    };
    let mut machines = Vec::new();
    for (name, binary) in binaries()? {
        let mut plan = Plan::new(&agent.socket(CLIENT_APP), to, &[]);
        plan.program = binary;
        machines.push((name, plan.start().await));
    }
    let ours =
        |(name, machine): &(&str, Machine)| peer(name, machine.ports.client.addr(), peers::daemon(machine));
    let mut all: Vec<_> = machines.iter().map(ours).collect();
    all.push(peer("nginx", nginx.port.addr(), nginx.program.pids()));
    all.push(peer("haproxy", haproxy.port.addr(), haproxy.program.pids()));
    let loads = pace.connections.iter().map(|connections| {
        let load = Load {
            connections: *connections,
            headers: vec![("x-dstack-target-app", SERVER_APP.to_owned())],
            path: "/".to_owned(),
            ..Load::default()
        };
        (connections.to_string(), load)
    });
    Scene::run("Outbound proxy alone", all, loads.collect(), pace)
}

/// Ours, and one to compare it with.
fn binaries() -> Result<Vec<(&'static str, PathBuf)>> {
    let mut binaries = vec![("dstack-vpc", peers::binary()?)];
    if let Some(before) = std::env::var_os("BENCH_BEFORE") {
        binaries.push(("before", before.into()));
    }
    Ok(binaries)
}
