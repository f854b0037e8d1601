//! The program at a terminal: help, slips of the hand, colours, Ctrl-C, and readers that have had enough.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use dstack_vpc::cli;
use nix::pty::openpty;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::common;

/// The program with these arguments, and an environment of its own.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(common::binary());
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command
}

fn said(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = program(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn every_command_has_examples_that_fit_a_terminal() {
    let command = cli::command();
    let commands: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    let described: Vec<_> = cli::help::ALL.iter().map(|help| help.command).collect();
    assert_eq!(commands, described);
    for one in command.get_subcommands().chain([&command]) {
        let text = one.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains("Examples:\n  "), "{}", one.get_name());
        let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(widest.chars().count() <= 80, "{}: {widest}", one.get_name());
    }
}

#[test]
fn a_mistyped_command_is_answered_with_the_one_that_was_meant() {
    for (arguments, meant) in [
        (&["statsu"][..], "'status'"),
        (&["chekc"], "'check'"),
        (&["status", "--jsno"], "'--json'"),
        (&["init", "--role", "sever"], "'server'"),
        (&["completions", "bsh"], "'bash'"),
    ] {
        let (code, out, err) = said(arguments);
        // Not 2, which is for `plan` to say that there are changes.
        assert_eq!((code, out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(err.contains(meant), "{arguments:?}: {err}");
    }
    let (code, out, _) = said(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("dstack-vpc init --role mesh > vpc.toml"), "{out}");
}

/// What the program writes to a terminal.
fn on_a_terminal(command: &mut Command) -> String {
    let pty = openpty(None, None).unwrap();
    let slave = || -> OwnedFd { pty.slave.try_clone().unwrap() };
    let mut child = command.stdout(slave()).stderr(slave()).spawn().unwrap();
    drop(pty.slave);
    // The command keeps its own copies of the terminal until it is dropped or gets others.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shown = Vec::new();
    // A terminal that nobody writes to any more ends with an error.
    let _ = File::from(pty.master).read_to_end(&mut shown);
    child.wait().unwrap();
    String::from_utf8(shown).unwrap()
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("vpc.toml");
    fs::write(&wrong, "rol = \"mesh\"\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    for arguments in [
        &["--config", wrong, "check"][..],
        &["--state-dir", state, "status"],
        &["plan", "--help"],
        &["statsu"],
    ] {
        let coloured = on_a_terminal(program(arguments).env("TERM", "xterm-256color"));
        assert!(coloured.contains("\x1b["), "{arguments:?}: {coloured}");
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let plain = on_a_terminal(program(arguments).env(name, value));
            assert!(
                !plain.is_empty() && !plain.contains('\x1b'),
                "{name} {arguments:?}: {plain}"
            );
        }
    }
}

/// A pipe that nobody reads.
fn deaf() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn nobody_has_to_listen() {
    for arguments in [&["init"][..], &["--help"], &["statsu"], &["render"]] {
        let status = program(arguments).stdout(deaf()).stderr(deaf()).status().unwrap();
        let expected: &[i32] = match arguments {
            ["--help"] => &[0],
            ["statsu"] => &[1],
            _ => &[141],
        };
        assert!(
            expected.contains(&status.code().unwrap_or(-1)),
            "{arguments:?}: {status}"
        );
    }
}

/// A terminal sends SIGINT to whatever was started there: to `check`, which ends the nginx that looks at the file for it.
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (asked, tmp) = (dir.path().join("asked"), dir.path().join("tmp"));
    fs::create_dir(&tmp).unwrap();
    let slow = dir.path().join("nginx");
    // Without the answer to -v it would not be taken for nginx.
    let script = format!(
        "#!/bin/sh\ncase $* in -v) exec nginx -v ;; esac\n: >{}\nexec sleep 100\n",
        asked.display()
    );
    File::create(&slow).unwrap().write_all(script.as_bytes()).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("vpc.toml");
    fs::write(&config, format!("[nginx]\nprogram = \"{}\"\n", slow.display())).unwrap();
    let mut check = program(&["--config", config.to_str().unwrap(), "check"]);
    check
        .env("TMPDIR", &tmp)
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut check = check.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !asked.exists() {
        assert!(Instant::now() < end, "nginx was not asked: make setup");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 1, "what it works on");
    let group = Pid::from_raw(i32::try_from(check.id()).unwrap());
    killpg(group, Signal::SIGINT).unwrap();
    let status = check.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "it left something behind");
}
