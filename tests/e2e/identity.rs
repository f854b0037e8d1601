//! The machine's own certificate: had late, renewed early.

use std::time::Duration;

use dstack_vpc::reconcile::status::ConditionKind::{IdentityValid, Ready};
use dstack_vpc::reconcile::status::{Status, Truth};

use crate::common::agent::Agent;
use crate::common::backend::Backend;
use crate::common::http::{With, get};
use crate::common::load::Load;
use crate::common::machine::{EDIT, Plan, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{SERVER_APP, poll, run};

#[test]
fn renewals_under_load_fail_no_request() {
    run(async {
        let pair = Pair::start().await;
        let load = Load::start(2, pair.client.ports.http.addr(), || {
            get("/load").to_app(SERVER_APP)
        });
        for machine in [&pair.server, &pair.client, &pair.server, &pair.client] {
            let folder = |status: &Status| status.identity.as_ref().map(|identity| identity.folder.clone());
            let before = folder(&machine.status().await.unwrap());
            machine.ask_for_renewal().await;
            let renewed = |status: &Status| folder(status) != before && !status.owed && holds(status, Ready);
            let status = machine.until(EDIT, "the new certificate is live", renewed).await;
            assert!(holds(&status, IdentityValid), "{status:#?}");
        }
        load.answered(30).await;
        let tally = load.stop().await;
        assert!(
            tally.failed.is_empty(),
            "{} answered, failed: {:#?}",
            tally.answered,
            tally.failed
        );
    });
}

#[test]
fn an_agent_that_is_away_at_start_is_waited_for() {
    run(async {
        let mut agent = Agent::start().await;
        agent.stop();
        let backend = Backend::start("default").await;
        let nowhere = Port::reserve();
        let plan = Plan::new(
            &agent.socket(SERVER_APP),
            nowhere.addr(),
            &[("default", "_", backend.addr())],
        );
        let machine = plan.spawn();
        let waits = |status: &Status| {
            status
                .conditions
                .iter()
                .any(|c| c.kind == IdentityValid && c.status == Truth::False)
        };
        let status = machine
            .until(Duration::from_secs(60), "it says what it waits for", waits)
            .await;
        assert!(!holds(&status, Ready), "{status:#?}");
        let why = status
            .conditions
            .iter()
            .find(|c| c.kind == IdentityValid)
            .unwrap();
        assert!(why.message.contains("agent"), "{why:?}");
        // What can be served is: local apps reach the proxy.
        let health = poll(Duration::from_secs(30), async || {
            machine
                .call(get("/health"))
                .await
                .ok()
                .filter(|reply| reply.status == 200)
        });
        assert!(health.await.is_some(), "{}", machine.logs());

        agent.restart().await;
        machine.until_ready().await;
        let reply = machine
            .call_as_peer(Some(agent.issue(SERVER_APP)), get("/"))
            .await
            .unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
}
