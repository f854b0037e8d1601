//! An edit that would leave a server without its Headscale.

use std::os::unix::fs::PermissionsExt;

use dstack_vpc::reconcile::status::ConditionKind::{ApiServing, Configured, Ready};
use dstack_vpc::reconcile::status::Status;

use crate::common::machine::{EDIT, holds};
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
        let again = |status: &Status| holds(status, ApiServing) && status.generation == before.generation;
        pair.server.until(EDIT, "it is well again", again).await;
        let processes = pair.server.processes();
        assert!(
            !processes
                .iter()
                .any(|process| process.command.contains("sleep 1000000"))
        );
    });
}
