//! The keys by which a VPC lives, at every step of a node's way into it: each is where it is to be, and nowhere else.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::machine::{EDIT, holds};
use crate::common::run;
use crate::common::secrets::{Secrets, open_to_others};
use crate::site::{Id, Site};
use crate::vpc::{Member, server_toml, until};
use dstack_vpc::reconcile::status::ConditionKind::{Configured, Ready};
use dstack_vpc::reconcile::status::Status;

/// Everything that the daemon can be made to say, at every level.
const LOUD: &str = "[log]\nlevel = \"trace\"\n[mesh]\naccess_log = true\n";

#[test]
fn secrets_stay_where_they_belong() {
    run(async {
        let site = Site::new().await;
        let (of_server, of_node) = (Id::new("5e44e4", 1), Id::new("db", 1));
        let node_toml = format!(
            "role = \"node\"\n[node]\nname = \"db-1\"\ntype = \"mongodb\"\nserver_app_id = \"{}\"\n{LOUD}",
            of_server.app
        );
        let start = async |name, id: &Id, toml: String| {
            let host = site.host(name, id).await;
            let machine = site.machine(&host, &toml).spawn();
            let id = id.clone();
            Member {
                name,
                id,
                machine,
                host,
            }
        };
        let server = start("server", &of_server, server_toml(&[&of_node]) + LOUD).await;
        let node = start("db-1", &of_node, node_toml).await;
        // The key to join with exists for a moment only.
        let mut secrets = Secrets::default();
        let mut commands = BTreeSet::new();
        let joined = until(Duration::from_secs(120), "the node has joined", async || {
            for member in [&server, &node] {
                secrets.look(member.machine.state.root());
                let processes = member.machine.processes().into_iter();
                commands.extend(processes.map(|process| process.command));
            }
            match node.machine.status().await {
                Some(status) if holds(&status, Ready) => Ok(()),
                status => Err(format!("{status:#?}")),
            }
        });
        joined.await.expect("a VPC");
        let again = format!("/api/register?instance_id={}", node.id.instance);
        let welcome = node.ask(&server.id, &again).await.expect("another key");
        secrets.add(
            "the key to join with",
            welcome["pre_auth_key"].as_str().expect("a key"),
        );
        for kind in [
            "server/identity",
            "db-1/identity",
            "secrets/headscale_api_key",
            "secrets/shared_key",
            "secrets/membership.json",
            "secrets/join_key",
            "headscale/noise_private.key",
            "tailscale/tailscaled.state",
            "the key to join with",
        ] {
            let kind = kind.rsplit_once("identity").map_or(kind, |_| "/identity/");
            assert!(secrets.have(kind), "no secret of {kind}: {secrets:#?}");
        }

        let commands: Vec<_> = commands.into_iter().collect();
        let commands = commands.join("\n");
        assert!(
            commands.contains("--auth-key=file:"),
            "not seen at work: {commands}"
        );
        let said = secrets.in_text("the arguments of a command", &commands);
        assert!(said.is_empty(), "{said:#?}");

        for (member, change) in [
            (&server, "[headscale]\napi_key_lifetime = \"80d\"\n"),
            (&node, "[reconcile]\nkeep = 5\n"),
        ] {
            let machine = &member.machine;
            // Refused, planned, live, told.
            machine.edit(|toml| format!("{toml}\n[nonsense]\n")).await;
            machine.save(|toml| toml.replace("\n[nonsense]\n", change)).await;
            let mut said = Vec::new();
            for command in [
                &["plan"][..],
                &["plan", "--json"],
                &["apply"],
                &["check"],
                &["render"],
                &["explain"],
                &["status"],
                &["status", "--json"],
                &["history", "--json"],
                &["doctor", "--verbose"],
                &["nodes"],
            ] {
                let output = machine.cli(command);
                let text = [output.stdout, output.stderr].concat();
                let place = format!("the answer to {command:?} of {}", member.name);
                said.extend(secrets.in_text(&place, &String::from_utf8_lossy(&text)));
            }
            assert!(said.is_empty(), "{said:#?}");
            let live = |status: &Status| holds(status, Configured);
            machine.until(EDIT, "the edit is live", live).await;
            secrets.look(machine.state.root());
        }
        for member in [&server, &node] {
            let leaks = member.machine.leaks(&secrets);
            assert!(leaks.is_empty(), "{leaks:#?}");
            let open = open_to_others(member.machine.state.root());
            assert!(open.is_empty(), "{open:#?}");
        }
    });
}
