//! What a person at a terminal sees of what goes on, and what is left of it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Alone;
use crate::common::machine::Machine;
use crate::common::{binary, poll, run};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: usize = 24;
const COLUMNS: usize = 80;

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal in which a command runs, and all that was written to it.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(machine: &Machine, command: &str, env: &[(&str, &str)]) -> Self {
        let program = format!(
            "stty rows {ROWS} cols {COLUMNS}; exec {} --config {} --state-dir {} {command}",
            binary().display(),
            machine.config.display(),
            machine.state.root().display()
        );
        let mut child = Command::new("script")
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &program,
                "/dev/null",
            ])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .env_remove("NO_COLOR")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of Debian's bsdutils");
        let keys = child.stdin.take().expect("a pipe");
        let mut shown = child.stdout.take().expect("a pipe");
        let written = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = shown.read(&mut part) {
                into.lock().expect("no panic").extend_from_slice(&part[..length]);
            }
        });
        Self { child, keys, written }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().expect("no panic")).into_owned()
    }

    async fn until(&self, what: &str) {
        let seen = poll(PATIENCE, async || self.text().contains(what).then_some(()));
        assert!(seen.await.is_some(), "{what:?} is not in\n{}", self.text());
    }

    /// Presses Ctrl-C; how it ended, once all that it wrote is here.
    async fn interrupt(&mut self) -> Option<i32> {
        self.keys.write_all(b"\x03").expect("the terminal reads");
        let ended = poll(PATIENCE, async || self.child.try_wait().expect("our own child"));
        let ended = ended
            .await
            .unwrap_or_else(|| panic!("it goes on\n{}", self.text()));
        ended.code()
    }

    async fn until_end(&self, end: &str) {
        let seen = poll(PATIENCE, async || self.text().ends_with(end).then_some(()));
        assert!(
            seen.await.is_some(),
            "{end:?} is not the end of\n{:?}",
            self.text()
        );
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each picture that was drawn whole, as its lines.
fn pictures(text: &str) -> Vec<Vec<String>> {
    let drawn = text
        .split("\x1b[H")
        .skip(1)
        .filter_map(|rest| rest.split_once("\x1b[J"));
    // The terminal itself shows which key was pressed, wherever it is.
    let drawn = drawn.map(|(picture, _)| picture.replace("^C", ""));
    let plain = drawn.map(|picture| anstream::adapter::strip_str(&picture).to_string());
    plain
        .map(|picture| picture.lines().map(|line| line.trim_end().to_owned()).collect())
        .collect()
}

#[test]
fn a_watched_status_is_drawn_in_place_and_leaves_nothing() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let mut terminal = Terminal::start(&alone.machine, "status --watch", &[]);
        terminal.until("ready\x1b[0m: everything").await;
        alone.machine.edit(|toml| toml + "\n[nonsense]\n").await;
        terminal.until("degraded\x1b[0m, but it serves").await;
        assert_eq!(terminal.interrupt().await, Some(130));
        terminal.until_end(LEAVE).await;
        let text = terminal.text();
        assert_eq!(text.matches(ENTER).count(), 1, "{text:?}");
        let pictures = pictures(&text);
        assert!(pictures.len() >= 2, "{text:?}");
        for picture in pictures {
            assert!(picture.len() <= ROWS, "{picture:#?}");
            assert!(
                picture.iter().all(|line| line.chars().count() <= COLUMNS),
                "{picture:#?}"
            );
        }

        // The same for those who want no colours.
        let mut terminal = Terminal::start(&alone.machine, "status --watch", &[("NO_COLOR", "1")]);
        terminal.until("degraded, but it serves").await;
        assert_eq!(terminal.interrupt().await, Some(130));
        terminal.until_end(LEAVE).await;
        let coloured = terminal.text().split("\x1b[").any(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit() && c != ';');
            end.is_some_and(|end| part[end..].starts_with('m'))
        });
        assert!(!coloured, "{:?}", terminal.text());

        // Another program gets one after the other.
        let watching = Command::new(binary())
            .args(["--state-dir".as_ref(), alone.machine.state.root().as_os_str()])
            .args(["status", "--watch"])
            .stdout(Stdio::piped())
            .spawn();
        let mut watching = watching.expect("the dstack-vpc binary");
        let mut first = [0; 4096];
        let length = watching
            .stdout
            .as_mut()
            .expect("a pipe")
            .read(&mut first)
            .expect("its words");
        let first = String::from_utf8_lossy(&first[..length]);
        let ended = watching.kill().and_then(|()| watching.wait());
        assert!(
            first.starts_with("degraded, but it serves:") && !first.contains('\x1b'),
            "{first:?}"
        );
        ended.expect("our own child");
    });
}

#[test]
fn what_takes_long_is_told_at_a_terminal_and_leaves_nothing() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let pid = alone.machine.status().await.expect("the daemon answers").pid;
        let daemon = Pid::from_raw(pid as i32);
        kill(daemon, Signal::SIGSTOP).expect("the daemon");
        let mut terminal = Terminal::start(&alone.machine, "apply", &[]);
        terminal.until("… making it live, 1s").await;
        let code = terminal.interrupt().await;
        kill(daemon, Signal::SIGCONT).expect("the daemon");
        assert_eq!(code, Some(130));
        let generation = alone.machine.until_ready().await.generation;
        let generation = generation.expect("one that serves");
        terminal
            .until(&format!("\r\x1b[Kinterrupted: generation {generation} serves"))
            .await;
        terminal.until("The daemon goes on with it").await;
        terminal.until("  dstack-vpc status --watch  shows it").await;
        terminal.until("  dstack-vpc rollback        takes it back").await;

        // It does: what nobody waits for any more is done before what is asked for next. Where nobody looks, nothing is
        // said but the outcome.
        let applied = alone.machine.cli(&["apply"]);
        assert!(
            applied.status.success() && applied.stderr.is_empty(),
            "{applied:?}"
        );
    });
}
