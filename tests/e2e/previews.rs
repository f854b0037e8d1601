//! Commands that only look, and what they answer.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::agent::Agent;
use crate::common::machine::{Plan, has_nginx};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, run};

#[test]
fn looking_changes_nothing() {
    run(async {
        let pair = Pair::shared().await;
        let machine = &pair.server;
        // What the daemon itself writes from time to time is not of interest here.
        let before = photograph(&machine.state.root().join("generations"), &machine.config);
        for args in [
            &["check"][..],
            &["plan"],
            &["plan", "--json"],
            &["render"],
            &["explain"],
            &["explain", "mesh.http_listen"],
            &["status"],
            &["status", "--json"],
            &["healthcheck"],
        ] {
            let output = machine.cli(args);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
        }
        let after = photograph(&machine.state.root().join("generations"), &machine.config);
        assert_eq!(before, after);
    });
}

#[test]
fn plan_says_what_would_change_and_exits_2() {
    run(async {
        let pair = Pair::shared().await;
        let machine = &pair.server;
        let plan = |from: &str, to: &str| {
            let other = machine.dir.path().join("other.toml");
            let text = fs::read_to_string(&machine.config).unwrap();
            fs::write(&other, text.replace(from, to)).unwrap();
            let output = std::process::Command::new(crate::common::binary())
                .args(["--config".as_ref(), other.as_os_str()])
                .args(["--state-dir".as_ref(), machine.state.root().as_os_str()])
                .arg("plan")
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}{error}");
            text
        };
        let text = plan("reports.local", "renamed.local");
        let by = if has_nginx() { "reload" } else { "update in place" };
        assert!(text.contains("renamed.local") && text.contains(by), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours in a pipe");

        let fronts = ["nginx", "builtin"].map(|front| format!("front = \"{front}\""));
        let [now, other] = if has_nginx() { [0, 1] } else { [1, 0] }.map(|at| &fronts[at]);
        let (http, https) = (&machine.ports.http, &machine.ports.https);
        let words = format!("for a moment connections to {http} and {https} are refused");
        let text = plan(now, other);
        assert!(text.contains(&words), "{text}");
    });
}

#[test]
fn where_nothing_runs_the_previews_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("vpc.toml");
    fs::write(
        &config,
        "role = \"mesh\"\n[dstack]\nagent = \"unix:/nowhere/dstack.sock\"\n",
    )
    .unwrap();
    let before = photograph(dir.path(), &config);
    let cli = |args: &[&str]| {
        let output = std::process::Command::new(crate::common::binary())
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--state-dir".as_ref(), dir.path().join("state").as_os_str()])
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let assumed = "app_id=5e44e40000000000000000000000000000000002";
    let (code, rendered) = cli(&[
        "render",
        "--assume",
        assumed,
        "--assume",
        "gateway_domain=apps.example.com:443",
    ]);
    assert_eq!(code, Some(0));
    assert!(
        rendered.contains("nginx.conf") && rendered.contains("supervisord"),
        "{rendered}"
    );
    assert_eq!(cli(&["check"]).0, Some(0));
    assert_eq!(cli(&["explain"]).0, Some(0));
    assert_eq!(cli(&["healthcheck"]).0, Some(1));
    assert_eq!(cli(&["status"]).0, Some(1));
    assert_eq!(cli(&["nodes"]).0, Some(1));
    let (code, found) = cli(&["doctor"]);
    assert_eq!(code, Some(1));
    assert!(found.contains("unix:/nowhere/dstack.sock"), "{found}");
    cli(&["plan"]);
    assert_eq!(photograph(dir.path(), &config), before);
}

#[test]
fn doctor_finds_a_running_machine_well_and_leaves_it_alone() {
    run(async {
        let pair = Pair::shared().await;
        let machine = &pair.client;
        let before = photograph(machine.state.root(), &machine.config);
        let output = machine.cli(&["doctor", "--verbose"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        for well in [
            "the daemon runs, and everything is as configured",
            "the KMS issues certificates",
            "mesh.https_listen",
            "nobody else can read what lies in",
        ] {
            assert!(said.contains(well), "not {well:?}:\n{said}");
        }
        // Sockets and logs of the running programs have times of their own.
        let after = photograph(machine.state.root(), &machine.config);
        let of_ours = |path: &&String| {
            path.contains("/generations/") || path.contains("/identity/") || path.contains("/secrets")
        };
        for path in after.keys().filter(of_ours) {
            assert_eq!(before.get(path), after.get(path), "{path}");
        }
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            after.keys().collect::<Vec<_>>()
        );

        let output = machine.cli(&["nodes"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(error.contains("no server"), "{error}");
    });
}

#[test]
fn doctor_tells_a_daemon_that_hangs_or_is_gone_from_strangers_on_its_ports() {
    run(async {
        let agent = Agent::start().await;
        let nowhere = Port::reserve();
        let machine = Plan::new(&agent.socket(CLIENT_APP), nowhere.addr(), &[])
            .start()
            .await;
        let daemon = machine.until_ready().await.pid;
        let errors = || {
            let output = machine.cli(&["doctor", "--json"]);
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let findings = report["findings"].as_array().unwrap().iter();
            let errors = findings.filter(|it| it["severity"] == "error" && it["check"] != "gateway");
            errors
                .map(|it| it["what"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(errors(), [] as [String; 0]);
        let pid = Pid::from_raw(daemon as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        let found = errors();
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(found, ["the daemon does not answer: nothing came within 5s"]);

        let conf = machine.state.current().join("supervisor/supervisord.conf");
        let stopped = std::process::Command::new("supervisorctl")
            .args(["-c".as_ref(), conf.as_os_str()])
            .args(["stop", "dstack-vpc"])
            .output();
        assert!(stopped.unwrap().status.success());
        assert_eq!(errors(), ["supervisord runs, and the daemon does not"]);
        let said = machine.cli(&["status"]).stderr;
        let starts = format!("`supervisorctl -c {} start dstack-vpc` starts it", conf.display());
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(&starts), "{said}");
    });
}

#[test]
fn the_vpc_toml_of_the_readme_is_valid() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("vpc.toml");
    fs::write(&config, example).unwrap();
    let output = std::process::Command::new(crate::common::binary())
        .args(["--config".as_ref(), config.as_os_str()])
        .arg("check")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
}

/// Every file and folder below `dir`, and `config`: modification time in ns, mode and content.
fn photograph(dir: &Path, config: &Path) -> BTreeMap<String, (i64, i64, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut queue = vec![dir.to_owned(), config.to_owned()];
    while let Some(path) = queue.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if meta.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let name = path.to_string_lossy().into_owned();
        found.insert(name, (meta.mtime(), meta.mtime_nsec(), meta.mode(), content));
    }
    found
}
