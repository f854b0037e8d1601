//! Bad input gets a sentence that says what to do, never a stack trace.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::agent::Agent;
use crate::common::machine::{Plan, has_nginx};
use crate::common::ports::Port;
use crate::common::{SERVER_APP, poll, run};

#[test]
fn a_file_that_cannot_be_read() {
    let dir = open_dir();
    let config = dir.path().join("vpc.toml");
    fs::write(&config, "role = \"mesh\"\n").unwrap();
    fs::set_permissions(&config, PermissionsExt::from_mode(0o000)).unwrap();
    let said = refused(as_anybody(&config, dir.path(), &["check"]));
    assert!(
        said.contains("vpc.toml") && said.to_lowercase().contains("permission"),
        "{said}"
    );
}

#[test]
fn a_file_that_is_not_there() {
    let dir = open_dir();
    let said = refused(cli(&dir.path().join("absent.toml"), dir.path(), &["check"]));
    assert!(said.contains("absent.toml"), "{said}");
}

#[test]
fn a_directory() {
    let dir = open_dir();
    let said = refused(cli(dir.path(), dir.path(), &["check"]));
    assert!(said.contains("is a directory"), "{said}");
}

#[test]
fn bytes_that_are_not_utf_8() {
    let said = check(b"role = \"mesh\"\n# \xff\xfe\n");
    assert!(
        said.contains("UTF-8") && said.contains('2'),
        "names the line: {said}"
    );
}

#[test]
fn ten_megabytes_of_junk_are_refused_at_once() {
    let junk: Vec<u8> = (0..10_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let begin = Instant::now();
    let said = check(&junk);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(said.len() < 2_000, "{} bytes of message", said.len());
    assert!(said.contains("at most 8 MiB"), "{said}");
}

#[test]
fn wrong_types_and_unknown_keys_are_all_said_at_once() {
    let said = check(
        b"role = 3\nallowed_apps = \"nobody\"\n[mesh]\nhttp_listn = \"0.0.0.0:80\"\nhttps_listen = \"here\"\n",
    );
    for (line, words) in [
        (1, "role"),
        (2, "allowed_apps"),
        (4, "http_listen"),
        (5, "https_listen"),
    ] {
        assert!(said.contains(&format!("vpc.toml:{line}:")), "line {line}: {said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("did you mean"), "{said}");
    assert!(said.contains('^'), "a caret below the value: {said}");
}

#[test]
fn a_bad_variable_is_named() {
    let dir = open_dir();
    let output = Command::new(crate::common::binary())
        .args(["--state-dir".as_ref(), dir.path().as_os_str()])
        .arg("check")
        .env("VPC__MESH__HTTP_LISTEN", "everywhere")
        .env("VPC__MESH__HTTP_LISTN", "0.0.0.0:80")
        .env("VPC_ALLOWED_APPS", "c11e")
        .output()
        .unwrap();
    let said = refused(output);
    for words in [
        "VPC__MESH__HTTP_LISTEN",
        "everywhere",
        "VPC__MESH__HTTP_LISTN",
        "VPC_ALLOWED_APPS",
        "40 hex",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let dir = open_dir();
    let config = dir.path().join("vpc.toml");
    fs::write(&config, "role = \"mesh\"\n").unwrap();
    // A file where a folder should be stops even root.
    let state = dir.path().join("state");
    fs::write(&state, "").unwrap();
    for command in ["up", "apply", "run"] {
        let said = refused(cli(&config, &state, &[command]));
        assert!(said.contains(&*state.to_string_lossy()), "{command}: {said}");
        assert!(said.contains("--state-dir"), "says what to do: {said}");
    }
}

#[test]
fn a_second_daemon_is_told_who_was_first() {
    run(async {
        let pair = crate::common::pair::Pair::shared().await;
        let said = refused(pair.server.cli(&["run"]));
        let pid = pair.server.status().await.unwrap().pid.to_string();
        assert!(said.contains(&pid), "{pid}: {said}");
    });
}

#[test]
fn programs_that_are_missing_are_named_with_their_packages() {
    run(async {
        let agent = Agent::start().await;
        for (section, package) in [("nginx", "nginx"), ("supervisor", "supervisor")] {
            let nowhere = Port::reserve();
            let mut plan = Plan::new(&agent.socket(SERVER_APP), nowhere.addr(), &[]);
            plan.insist_on_nginx();
            plan.toml += &format!("\n[{section}]\nprogram = \"/nowhere/{section}\"\n");
            let machine = plan.spawn();
            let words = [
                format!("/nowhere/{section}"),
                format!("apt-get install {package}"),
            ];
            let said = poll(Duration::from_secs(30), async || {
                let logs = machine.logs();
                words.iter().all(|words| logs.contains(words)).then_some(())
            });
            assert!(said.await.is_some(), "{words:?}\n{}", machine.logs());
            assert!(!machine.logs().contains("panicked"));
        }
    });
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    run(async {
        let agent = Agent::start().await;
        let nowhere = Port::reserve();
        for listener in ["client", "auth", "http", "https"] {
            if listener == "auth" && !has_nginx() {
                continue; // Nobody but nginx asks there.
            }
            let plan = Plan::new(&agent.socket(SERVER_APP), nowhere.addr(), &[]);
            let port = match listener {
                "client" => &plan.ports.client,
                "auth" => &plan.ports.auth,
                "http" => &plan.ports.http,
                _ => &plan.ports.https,
            };
            let words = [
                format!("mesh.{listener}_listen"),
                port.number().to_string(),
                std::process::id().to_string(),
            ];
            let _holder = TcpListener::bind(port.addr()).unwrap();
            let machine = plan.spawn();
            let said = poll(Duration::from_secs(30), async || {
                let mut said = machine.logs();
                if let Some(error) = machine.status().await.and_then(|status| status.last_error) {
                    said += &error.message;
                }
                let line = said
                    .lines()
                    .find(|line| words.iter().all(|words| line.contains(words)));
                line.map(str::to_owned)
            });
            assert!(said.await.is_some(), "{words:?}\n{}", machine.logs());
        }
    });
}

/// What `check` says of a file with this content; it must refuse it.
fn check(content: &[u8]) -> String {
    let dir = open_dir();
    let config = dir.path().join("vpc.toml");
    fs::write(&config, content).unwrap();
    refused(cli(&config, dir.path(), &["check"]))
}

fn cli(config: &Path, state: &Path, args: &[&str]) -> std::process::Output {
    command(Command::new(crate::common::binary()), config, state, args)
}

/// As a user who may not read everything.
fn as_anybody(config: &Path, state: &Path, args: &[&str]) -> std::process::Output {
    if !nix::unistd::geteuid().is_root() {
        return cli(config, state, args);
    }
    let place = open_dir();
    let binary = crate::common::copy_binary(place.path());
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
        .arg(binary);
    command(setpriv, config, state, args)
}

fn command(mut command: Command, config: &Path, state: &Path, args: &[&str]) -> std::process::Output {
    command
        .args(["--config".as_ref(), config.as_os_str()])
        .args(["--state-dir".as_ref(), state.as_os_str()])
        .args(args)
        .output()
        .expect("the dstack-vpc binary")
}

/// What was said, given that the exit status is 1 and nothing panicked.
fn refused(output: std::process::Output) -> String {
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        !said.contains("panicked") && !said.contains("RUST_BACKTRACE"),
        "{said}"
    );
    said
}

/// A temporary directory that others may enter.
fn open_dir() -> TempDir {
    tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("a directory")
}
