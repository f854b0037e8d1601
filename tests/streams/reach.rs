//! Where a chain may run: over IPv6 alone, and to thousands of targets.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::task::JoinSet;

use crate::chain::Chain;
use crate::common::backend::Backend;
use crate::common::http::{self, With, get};
use crate::common::machine::{Machine, Plan};
use crate::common::{CLIENT_APP, SERVER_APP, run};
use crate::rotation::Kept;

fn over_ipv6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

#[test]
fn every_hop_works_over_ipv6() {
    run(async {
        let backend = Backend::on(over_ipv6(0), "six").await;
        let listeners = |plan: &mut Plan| {
            let ports = &plan.ports;
            for port in [&ports.client, &ports.auth, &ports.http, &ports.https] {
                plan.toml = plan
                    .toml
                    .replace(&port.to_string(), &over_ipv6(port.number()).to_string());
            }
        };
        let backends = [("six", "six.local", backend.addr())];
        let chain = Chain::start_on(over_ipv6(0), &backends, |client, server| {
            listeners(client);
            listeners(server);
        })
        .await;
        let ports = &chain.pair.client.ports;
        for port in [&ports.http, &ports.client] {
            let call = get("/").with("host", "six.local").to_app(SERVER_APP);
            let reply = http::send(over_ipv6(port.number()), call)
                .await
                .expect("an answer");
            assert_eq!(
                reply.json()["backend"],
                "six",
                "{} {}",
                reply.status,
                reply.text()
            );
            assert!(reply.text().contains(CLIENT_APP), "{}", reply.text());
        }
        assert!(chain.gateway.opened() > 0);
    });
}

/// Connections that each worker of the daemon may keep for later, as in `src/mesh/outbound/pool.rs`.
const KEPT: usize = 1024;

#[test]
#[ignore = "a minute; `make soak-streams`"]
fn thousands_of_targets_leave_bounded_files_and_memory() {
    run(async {
        const CALLERS: usize = 8;
        const TARGETS: usize = 4000;
        let chain = Chain::start(&[]).await;
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let mut kept = Kept::new(chain.proxy());
            callers.spawn(async move {
                // The gateway is one address: the port only makes it another target.
                for port in (caller + 1..=TARGETS).step_by(CALLERS) {
                    let call = get("/").with("x-dstack-target-port", &port.to_string());
                    let status = kept.call(call.to_app(SERVER_APP)).await;
                    assert_eq!(status.expect("an answer"), 200, "target {port}");
                }
            });
        }
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let (mut most, daemon) = (0, daemon(&chain.pair.client));
        while !callers.is_empty() {
            most = files(daemon).max(most);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            while let Some(ended) = callers.try_join_next() {
                ended.expect("the caller ends well");
            }
        }
        println!(
            "{most} files at most, {} KiB",
            crate::common::process::resident(daemon)
        );
        assert!(chain.gateway.opened() >= TARGETS);
        assert!(most < KEPT * workers + 200, "{most} files with {workers} workers");
    });
}

fn daemon(machine: &Machine) -> i32 {
    let processes = machine.processes();
    let daemon = processes.iter().find(|p| p.command.ends_with(" run"));
    daemon.expect("a daemon").pid
}

fn files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
