//! An edit that would leave a server without its Headscale.

use std::os::unix::fs::PermissionsExt;

use dstack_vpc::reconcile::status::ConditionKind::{ApiServing, Configured, Ready};
use dstack_vpc::reconcile::status::{Drift, Status};

use crate::common::machine::{EDIT, Machine, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{SERVER_APP, run};

/// It has a version, and finds every configuration good.
const NEVER_WELL: &str = "#!/bin/sh
case $1 in
    serve) exec sleep 1000000 ;;
    *) exec headscale \"$@\" ;;
esac
";

/// Somebody writes into its file, and the daemon puts that right.
async fn edited_by_hand(server: &Machine) -> Status {
    let file = server.state.current().join("headscale/headscale.yaml");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "server_url: http://example.org\n").unwrap();
    let repaired = |status: &Status| status.counters.drift.contains_key(&Drift::Edited);
    let status = server.until(EDIT, "it is put right", repaired).await;
    assert_eq!(std::fs::read(&file).unwrap(), good);
    let last = status.history.last().unwrap();
    assert!(!last.detail.contains("headscale: restart"), "{last:?}");
    status
}

#[test]
fn a_headscale_that_starts_and_never_gets_well_is_taken_back() {
    run(async {
        let ports = [Port::reserve(), Port::reserve()];
        let pair = Pair::start_with(|_, server| {
            let role = format!("role = \"server\"\nallowed_apps = [\"{SERVER_APP}\"]\n");
            server.toml = server.toml.replace("role = \"mesh\"\n", &role);
            server.toml += &format!(
                "[server]\nurl = \"https://vpn.example.com\"\nheadscale_listen = \"{}\"\napi_listen = \"{}\"\n",
                ports[0], ports[1]
            );
        })
        .await;
        let serves = |status: &Status| holds(status, Ready) && holds(status, ApiServing);
        let before = pair.server.until(EDIT, "it serves", serves).await;

        let after = edited_by_hand(&pair.server).await;
        assert_eq!(
            after.services["headscale"].pid, before.services["headscale"].pid,
            "what was written there since it had started means nothing to it"
        );

        let sick = pair.server.config.with_file_name("headscale");
        std::fs::write(&sick, NEVER_WELL).unwrap();
        std::fs::set_permissions(&sick, std::fs::Permissions::from_mode(0o755)).unwrap();
        let edit = |toml: String| format!("{toml}\n[headscale]\nprogram = \"{}\"\n", sick.display());
        let status = pair.server.edit(edit).await;
        assert!(!holds(&status, Configured), "{status:#?}");
        let last = status.history.last().unwrap();
        assert_eq!(last.outcome, "rolled back", "{last:#?}");
        let why = &status.last_error.as_ref().expect("why").message;
        assert!(why.contains("server.headscale_listen"), "{why}");

        // The one that was well serves again.
        let again = |status: &Status| holds(status, ApiServing) && status.generation == after.generation;
        pair.server.until(EDIT, "it is well again", again).await;
        let processes = pair.server.processes();
        assert!(
            !processes
                .iter()
                .any(|process| process.command.contains("sleep 1000000"))
        );
    });
}
