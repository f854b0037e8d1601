//! Somebody changes what was rendered, or where `current` leads.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready};
use dstack_vpc::reconcile::status::Drift;

use crate::common::http::get;
use crate::common::machine::{Machine, has_nginx, holds};
use crate::common::pair::Pair;
use crate::common::run;

/// The timer would put it right after 30 s; events have to do it well before that.
const SOON: Duration = Duration::from_secs(15);

/// What somebody does in the state directory.
type Deed = fn(&Machine);

fn rendered(machine: &Machine) -> std::path::PathBuf {
    let file = match has_nginx() {
        true => "nginx/nginx.conf",
        false => "supervisor/supervisord.conf",
    };
    machine.state.current().join(file)
}

fn edited(machine: &Machine) {
    fs::write(rendered(machine), "# nothing\n").unwrap();
}

fn deleted(machine: &Machine) {
    fs::remove_file(rendered(machine)).unwrap();
}

/// It says the same, for now.
fn linked(machine: &Machine) {
    let elsewhere = machine.dir.path().join("elsewhere");
    fs::rename(rendered(machine), &elsewhere).unwrap();
    symlink(elsewhere, rendered(machine)).unwrap();
}

fn opened(machine: &Machine) {
    fs::set_permissions(rendered(machine), Permissions::from_mode(0o666)).unwrap();
}

fn added(machine: &Machine) {
    fs::write(rendered(machine).with_file_name("more.conf"), "# more\n").unwrap();
}

fn point(machine: &Machine, target: &Path) {
    let new = machine.dir.path().join("new");
    symlink(target, &new).unwrap();
    fs::rename(new, machine.state.current()).unwrap();
}

fn pointed_elsewhere(machine: &Machine) {
    point(machine, Path::new("/tmp"));
}

fn pointed_to_an_earlier_one(machine: &Machine) {
    point(machine, Path::new("generations/000001"));
}

fn current_deleted(machine: &Machine) {
    fs::remove_file(machine.state.current()).unwrap();
}

fn current_is_a_folder(machine: &Machine) {
    current_deleted(machine);
    fs::create_dir(machine.state.current()).unwrap();
    fs::write(machine.state.current().join("file"), "").unwrap();
}

fn all_generations_deleted(machine: &Machine) {
    fs::remove_dir_all(machine.state.generations()).unwrap();
}

const DEEDS: [(&str, Deed, Drift); 10] = [
    ("edited", edited, Drift::Edited),
    ("deleted", deleted, Drift::Deleted),
    ("replaced by a link", linked, Drift::Link),
    ("another mode", opened, Drift::Mode),
    ("another file added", added, Drift::Added),
    ("current elsewhere", pointed_elsewhere, Drift::Current),
    (
        "current at an earlier generation",
        pointed_to_an_earlier_one,
        Drift::Current,
    ),
    ("current deleted", current_deleted, Drift::Current),
    ("current a folder", current_is_a_folder, Drift::Current),
    ("all generations deleted", all_generations_deleted, Drift::Deleted),
];

#[test]
fn whatever_is_done_to_what_is_live_is_put_right_counted_and_told() {
    run(async {
        let pair = Pair::start().await;
        let server = &pair.server;
        // So that there is an earlier generation.
        server
            .edit(|toml| toml.replace("probe_timeout = \"3s\"", "probe_timeout = \"4s\""))
            .await;
        let mode = || fs::metadata(rendered(server)).unwrap().permissions().mode() & 0o7777;
        let (good, its_mode) = (fs::read(rendered(server)).unwrap(), mode());
        for (name, deed, kind) in DEEDS {
            let before = server.status().await.expect("the daemon answers");
            let counted = before.counters.drift.get(&kind).copied().unwrap_or(0);
            deed(server);
            let begun = Instant::now();
            let repaired = |status: &dstack_vpc::reconcile::status::Status| {
                status.counters.drift.get(&kind).is_some_and(|now| *now > counted)
            };
            let status = server.until(SOON, name, repaired).await;
            println!("{name}: put right after {:?}", begun.elapsed());
            assert_eq!(fs::read(rendered(server)).unwrap(), good, "{name}");
            assert_eq!(mode(), its_mode, "{name}");
            assert!(server.state.current().is_symlink(), "{name}");
            let is_well = holds(&status, Ready) && holds(&status, Configured) && !holds(&status, Degraded);
            assert!(is_well && !status.owed, "{name}: {status:#?}");
            let last = status.history.last().expect("an event");
            assert!(last.cause.contains("somebody"), "{name}: {last:?}");
            assert_eq!(pair.call(get("/repaired")).await.status, 200, "{name}");
        }
    });
}
