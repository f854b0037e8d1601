//! What a plan says of the VPN comes true.

use std::time::Duration;

use dstack_vpc::node::NodeStatus;
use dstack_vpc::reconcile::status::ConditionKind::{Configured, Ready};
use dstack_vpc::reconcile::status::Status;

use crate::common::machine::{Machine, holds};
use crate::common::netns::Host;
use crate::common::{binary, run};
use crate::site::{Id, Site};
use crate::vpc::server_toml;

const SOON: Duration = Duration::from_secs(90);

#[test]
fn what_a_plan_says_of_the_vpn_comes_true() {
    run(async {
        let site = Site::new().await;
        let (of_server, of_node) = (Id::new("5e44e4", 1), Id::new("db", 1));
        let (one, two) = (
            site.host("server", &of_server).await,
            site.host("db-1", &of_node).await,
        );
        let toml = format!(
            "role = \"node\"\n[node]\nname = \"db-1\"\ntype = \"mongodb\"\nserver_app_id = \"{}\"\nheartbeat = \"1s\"\n",
            of_server.app
        );
        let server = site.machine(&one, &server_toml(&[&of_node])).spawn();
        let node = site.machine(&two, &toml).spawn();
        let joined = |name: &'static str| {
            move |status: &Status| {
                let in_vpn = |node: &NodeStatus| node.in_vpn() && node.dns_name.as_deref() == Some(name);
                holds(status, Ready) && status.node.as_ref().is_some_and(in_vpn)
            }
        };
        let name = "db-1.dstack.internal";
        let before = node.until(SOON, "it has joined", joined(name)).await;
        let address = |status: &Status| status.node.as_ref().and_then(|node| node.address);
        assert!(
            address(&before).is_some_and(|it| it.octets()[1] == 128),
            "{before:#?}"
        );

        let promised = edit(&one, &server, |toml| {
            toml.replace(
                "[vpn]\n",
                "[vpn]\nprefix = \"100.65.0.0/16\"\nbase_domain = \"vpc.internal\"\n",
            )
        })
        .await;
        assert!(
            promised.contains("nodes that have joined keep their addresses"),
            "{promised}"
        );
        assert!(
            promised.contains("nodes are named <node>.vpc.internal from now on"),
            "{promised}"
        );
        let name = "db-1.vpc.internal";
        let after = node.until(SOON, "it has the new name", joined(name)).await;
        assert_eq!(address(&after), address(&before));

        let promised = edit(&two, &node, |toml| toml.replace("db-1", "db-9")).await;
        assert!(promised.contains("by its new name only"), "{promised}");
        let name = "db-9.vpc.internal";
        let after = node.until(SOON, "it has the newest name", joined(name)).await;
        assert_eq!(address(&after), address(&before));
    });
}

/// Saves an edit, once `plan` has said what it means; what it said.
async fn edit(host: &Host, machine: &Machine, change: impl Fn(String) -> String) -> String {
    let old = std::fs::read_to_string(&machine.config).expect("vpc.toml");
    let draft = machine.dir.path().join("draft.toml");
    std::fs::write(&draft, change(old)).expect("a draft");
    let mut plan = host.inside.command(binary());
    plan.args(["--config".as_ref(), draft.as_os_str()]);
    plan.args(["--state-dir".as_ref(), machine.state.root().as_os_str()]);
    let output = plan.arg("plan").output().expect("the dstack-vpc binary");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let status = machine.edit(change).await;
    assert!(holds(&status, Configured), "{status:#?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
