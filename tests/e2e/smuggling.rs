//! The same attacks through everything: nginx, the proxy, nginx, and what the backend makes of them.

use tokio::net::TcpListener;

use crate::common::agent::Agent;
use crate::common::attacks::{Witness, mount};
use crate::common::machine::Plan;
use crate::common::{SERVER_APP, run};

#[test]
fn every_attack_reaches_the_backend_once_or_never_through_either_door() {
    run(async {
        let agent = Agent::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // It calls itself.
        let mut plan = Plan::new(
            &agent.socket(SERVER_APP),
            "127.0.0.1:1".parse().unwrap(),
            &[("default", "_", listener.local_addr().unwrap())],
        );
        plan.toml = plan
            .toml
            .replace("127.0.0.1:1\"", &format!("{}\"", plan.ports.https));
        let machine = plan.start().await;
        let doors = [
            (machine.ports.client.addr(), true),
            (machine.ports.http.addr(), false),
        ];
        for (door, is_ours) in doors {
            let witness = Witness::default();
            let serving = async {
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let witness = witness.clone();
                    connections.spawn(async move { witness.watch(stream).await });
                }
            };
            let wrong = tokio::select! {
                wrong = mount(door, is_ours, SERVER_APP, &witness) => wrong,
                () = serving => unreachable!("it serves without end"),
            };
            assert!(
                wrong.is_empty(),
                "{door}\n{}\n{}",
                wrong.join("\n"),
                machine.logs()
            );
        }
    });
}
