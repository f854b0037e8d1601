//! State directories of other versions: an earlier one's is taken over with all that is in it, a later one's is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use dstack_vpc::apply::{Real, format, generation};
use dstack_vpc::facts;
use dstack_vpc::identity;
use dstack_vpc::paths::StateDir;
use dstack_vpc::reconcile::{History, Lock, Rollout, Wish};
use dstack_vpc::registry::{self, RegistrySettings};
use tokio_util::sync::CancellationToken;

use crate::common::agent::Agent;
use crate::common::machine::Plan;
use crate::common::{CLIENT_APP, ports::Port, run};

/// What the last version before `format.json` left when it was stopped; `tests/states/README.md` says how it came about.
fn unpack(into: &Path) -> StateDir {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/states/format-0.tar.gz");
    let unpacked = Command::new("tar")
        .args([
            "-xzpf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            into.as_os_str(),
        ])
        .args(["--no-same-owner"])
        .status();
    assert!(unpacked.expect("tar").success());
    StateDir::new(into.join("state"))
}

/// Every file below `root` with its bytes, and every link with where it leads.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut queue = vec![root.to_owned()];
    while let Some(folder) = queue.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                let to = fs::read_link(&path).unwrap();
                found.insert(path, to.into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                queue.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }
    found
}

#[test]
fn everything_that_was_kept_before_formats_had_numbers_is_found_again() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let state = unpack(dir.path());
        let before = contents(state.root());
        let lock = Lock::take(&state).unwrap();
        let machine = Real::new(&state, None);
        assert_eq!(format::check(&machine, &state).unwrap(), format::FORMAT);
        let mut after = contents(state.root());
        assert!(after.remove(&format::path(&state)).is_some());
        for files in [&mut after, &mut before.clone()] {
            files.remove(&state.run().join("lock"));
        }
        for (path, bytes) in &after {
            assert_eq!(before.get(path), Some(bytes), "{}", path.display());
        }

        assert_eq!(generation::all(&machine, &state).unwrap(), [1, 2, 3]);
        assert_eq!(generation::current(&machine, &state).unwrap(), Some(1));
        let wish = Wish::last_good(&machine, &state).expect("the settings that served");
        assert!(wish.spec().role.server && wish.spec().backends[0].name.to_string() == "first");
        let held = Rollout::read(&machine, &state)
            .held
            .expect("the rollback is held");
        assert_eq!(held.generation, 1);
        let outcomes: Vec<_> = History::open(&state, 100)
            .1
            .into_iter()
            .map(|event| event.generation)
            .collect();
        assert!(
            outcomes.contains(&Some(3)) && outcomes.last() == Some(&Some(1)),
            "{outcomes:?}"
        );

        let made = fs::metadata(state.current().join("manifest.json"))
            .unwrap()
            .modified()
            .unwrap();
        let kept = identity::load(&state, None, made)
            .unwrap()
            .expect("a certificate")
            .identity;
        assert_eq!(kept.app_id.unwrap().to_string(), CLIENT_APP);
        let seen = facts::look(wish.spec(), &state, Duration::from_millis(10)).await;
        for (key, source) in [
            ("app id", seen.facts.app_id.map(|fact| fact.source)),
            ("gateway", seen.facts.gateway.map(|fact| fact.source)),
        ] {
            assert!(
                source.as_ref().is_some_and(|it| it.starts_with("remembered: ")),
                "{key}: {source:?}"
            );
        }

        let kept = &wish.spec().registry;
        let settings = RegistrySettings {
            store: kept.store,
            endpoints: Vec::new(),
            silence: kept.silence,
            forget_after: kept.forget_after,
        };
        let cancel = CancellationToken::new();
        let nodes = registry::open(&settings, &state.registry(), cancel)
            .await
            .unwrap();
        let mut names: Vec<_> = nodes
            .nodes()
            .iter()
            .map(|entry| entry.node.name.clone())
            .collect();
        names.sort();
        assert_eq!(names, ["db-1", "db-2"]);
        let secret = nodes.shared_secret(b"another".to_vec()).await.unwrap();
        assert_ne!(secret, b"another");
        nodes.close().await;
        drop(lock);

        // And nothing is done twice.
        let number = fs::metadata(format::path(&state)).unwrap().modified().unwrap();
        drop(Lock::take(&state).unwrap());
        assert_eq!(
            fs::metadata(format::path(&state)).unwrap().modified().unwrap(),
            number
        );
        assert!(number <= SystemTime::now());
    });
}

#[test]
fn a_machine_starts_on_it_and_goes_on_where_it_was() {
    run(async {
        let agent = Agent::start().await;
        let nowhere = Port::reserve();
        let plan = Plan::new(&agent.socket(CLIENT_APP), nowhere.addr(), &[]);
        unpack(plan.dir.path());
        let machine = plan.start().await;
        // The file is another one, so nothing is held any more; the numbers go on.
        let status = machine.until_ready().await;
        assert_eq!(status.generation, Some(4), "{status:#?}");
        let history = machine.cli(&["history", "--json", "-n", "100"]);
        let history = String::from_utf8(history.stdout).unwrap();
        assert!(history.lines().count() > 4, "{history}");
        assert!(
            history.lines().next().unwrap().contains("\"generation\":1"),
            "{history}"
        );
        let check = format::check(&Real::new(&machine.state, None), &machine.state);
        assert_eq!(check.unwrap(), format::FORMAT);
    });
}

#[test]
fn what_a_later_version_wrote_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let state = unpack(dir.path());
    let config = dir.path().join("vpc.toml");
    fs::write(&config, "[dstack]\nagent = \"unix:/nowhere/dstack.sock\"\n").unwrap();
    let later = r#"{"format":2,"written_by":"dstack-vpc 0.2.0","a_new_field":true}"#;
    fs::write(format::path(&state), later).unwrap();
    let before = contents(dir.path());
    let cli = |args: &[&str]| {
        // Were it not refused, it would stay.
        let output = Command::new("timeout")
            .arg("60")
            .arg(crate::common::binary())
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--state-dir".as_ref(), state.root().as_os_str()])
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let told = format!(
        "{} is in format 2, written by dstack-vpc 0.2.0; this is dstack-vpc {}, which knows formats up to 1. Nothing was \
         touched.\nStart dstack-vpc 0.2.0 again, or a later one. To go back",
        state.root().display(),
        env!("CARGO_PKG_VERSION")
    );
    for args in [
        &["up"][..],
        &["run"],
        &["apply"],
        &["plan"],
        &["rollback"],
        &["confirm"],
        &["renew"],
    ] {
        let (code, _, error) = cli(args);
        assert_eq!(code, Some(1), "{args:?}: {error}");
        assert!(error.starts_with(&format!("error: {told}")), "{args:?}: {error}");
    }
    // Whatever the command line lets through: the lock does not.
    let refused = Lock::take(&state).unwrap_err().to_string();
    assert!(refused.starts_with(&told), "{refused}");
    let (code, out, error) = cli(&["history"]);
    assert!(code == Some(0) && out.contains("generation 3"), "{out}");
    assert!(error.starts_with(&format!("warning: {told}")), "{error}");
    for args in [&["status"][..], &["explain"], &["healthcheck"], &["nodes"]] {
        assert!(cli(args).2.starts_with("warning: "), "{args:?}");
    }
    let (code, out, error) = cli(&["doctor"]);
    assert!(
        code == Some(1) && out.contains("is in format 2") && error.is_empty(),
        "{out}{error}"
    );
    assert_eq!(contents(dir.path()), before);
}
