//! Start, stop, crash and start again.

use std::time::Duration;

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready};
use dstack_vpc::reconcile::status::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::http::get;
use crate::common::machine::{EDIT, has_nginx, holds};
use crate::common::pair::{Pair, REPORTS};
use crate::common::{poll, process, run};

#[test]
fn sigterm_ends_everything_and_the_exit_status_is_0() {
    run(async {
        let mut pair = Pair::start().await;
        let before = pair.server.processes();
        let fewest = if has_nginx() { 4 } else { 2 };
        assert!(
            before.len() >= fewest,
            "up or supervisord, daemon, nginx and a worker: {before:?}"
        );
        let status = pair.server.terminate().await;
        assert_eq!(status.code(), Some(0), "{}", pair.server.logs());
        let left: Vec<_> = before.into_iter().filter(|p| process::is_alive(p.pid)).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn two_machines_run_side_by_side_as_an_ordinary_user() {
    run(async {
        if !nix::unistd::geteuid().is_root() {
            // Then every other test shows it.
            return;
        }
        let pair = Pair::start_with(|client, server| {
            client.user = Some("nobody");
            server.user = Some("nobody");
        })
        .await;
        assert_eq!(pair.call(get("/as-nobody")).await.status, 200);
        for process in [pair.client.processes(), pair.server.processes()].concat() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            assert!(!status.contains("Uid:\t0"), "{process:?}");
            if process.command.ends_with(" run") {
                // Others of this user cannot look into it: what the kernel shows of it is root's.
                let memory = std::fs::metadata(format!("/proc/{}/mem", process.pid)).unwrap();
                assert_eq!(std::os::unix::fs::MetadataExt::uid(&memory), 0, "{process:?}");
            }
        }
    });
}

#[test]
fn a_crash_is_survived() {
    run(async {
        let mut pair = Pair::start().await;
        pair.server = pair.server.crash_and_spawn();
        pair.server.until_ready().await;
        let reply = pair.call(get("/after-the-crash")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
}

#[test]
fn started_with_a_broken_file_the_last_good_configuration_serves() {
    run(async {
        let mut pair = Pair::start().await;
        let text = std::fs::read_to_string(&pair.server.config).unwrap();
        std::fs::write(&pair.server.config, format!("{text}\n[[[")).unwrap();
        pair.server = pair.server.crash_and_spawn();
        // At first it is degraded because its programs have not started yet.
        let up = |status: &Status| holds(status, Degraded) && holds(status, Ready);
        let status = pair
            .server
            .until(Duration::from_secs(60), "it is up, degraded", up)
            .await;
        assert!(!holds(&status, Configured), "{status:#?}");
        assert_eq!(pair.call(get("/on-the-last-good")).await.status, 200);

        std::fs::write(&pair.server.config, text).unwrap();
        pair.server
            .until(Duration::from_secs(30), "it follows again", |s| {
                holds(s, Configured)
            })
            .await;
    });
}

#[test]
fn a_killed_supervisord_takes_all_with_it_and_up_starts_again() {
    run(async {
        let mut pair = Pair::start().await;
        let before = pair.server.processes();
        pair.server.signal(Signal::SIGKILL);
        pair.server.ended().await;
        pair.server.spawn_again();
        let gone = crate::common::poll(Duration::from_secs(30), async || {
            (!before.iter().any(|p| process::is_alive(p.pid))).then_some(())
        });
        assert!(gone.await.is_some(), "{before:?}\n{}", pair.server.logs());
        pair.server.until_ready().await;
        assert_eq!(pair.call(get("/on-a-new-supervisord")).await.status, 200);
    });
}

#[test]
fn status_tells_of_a_hanging_daemon() {
    run(async {
        let pair = Pair::start().await;
        let found = pair.server.processes();
        let daemon = found
            .iter()
            .find(|p| p.command.ends_with(" run"))
            .expect("the daemon");
        kill(Pid::from_raw(daemon.pid), Signal::SIGSTOP).unwrap();
        let cli = pair.server.cli(&["status"]);
        kill(Pid::from_raw(daemon.pid), Signal::SIGCONT).unwrap();
        assert_eq!(cli.status.code(), Some(1), "{cli:?}");
        assert!(
            String::from_utf8_lossy(&cli.stderr).contains("does not answer"),
            "{cli:?}"
        );
    });
}

#[test]
fn a_program_that_an_operator_stops_and_starts_is_told_soon() {
    run(async {
        let pair = Pair::start_with(|_, server| server.insist_on_nginx()).await;
        let nginx = |wanted: &'static str| {
            move |status: &Status| status.services.get("nginx").is_some_and(|s| s.state == wanted)
        };
        let supervisor = dstack_vpc::supervisor::Supervisor::new(pair.server.state.supervisor_socket());
        supervisor.stop("nginx", Some(EDIT)).await.unwrap();
        let limit = Duration::from_secs(60);
        pair.server
            .until(limit, "it is told", nginx("stopped by hand"))
            .await;
        let cli = pair.server.cli(&["healthcheck"]);
        assert_eq!(cli.status.code(), Some(1), "{cli:?}");
        assert!(String::from_utf8_lossy(&cli.stderr).contains("nginx"), "{cli:?}");
        supervisor.start("nginx", None).await.unwrap();
        // Well before the timer, which comes after 30 s.
        let soon = Duration::from_secs(15);
        pair.server.until(soon, "it is told", nginx("up")).await;
        pair.server.until_ready().await;
    });
}

#[test]
fn killed_programs_come_back() {
    run(async {
        let pair = Pair::start().await;
        for (what, words) in [("nginx", "nginx: master"), ("the daemon", " run")] {
            if what == "nginx" && !has_nginx() {
                continue;
            }
            let found = pair.server.processes();
            let victim = found.iter().find(|p| p.command.contains(words)).expect(what);
            kill(Pid::from_raw(victim.pid), Signal::SIGKILL).unwrap();
            let pid = victim.pid;
            let back = crate::common::poll(Duration::from_secs(30), async || {
                let new = pair
                    .server
                    .processes()
                    .into_iter()
                    .any(|p| p.command.contains(words) && p.pid != pid);
                let status = pair.server.status().await?;
                (new && holds(&status, Ready)).then_some(())
            });
            assert!(back.await.is_some(), "{what}\n{}", pair.server.logs());
            assert_eq!(pair.call(get("/again")).await.status, 200, "{what}");
        }
    });
}

#[test]
fn an_edit_that_supervisord_does_not_hear_of_is_finished_as_soon_as_it_answers() {
    run(async {
        let pair = Pair::start().await;
        let server = &pair.server;
        let generation = || std::fs::read_link(server.state.current()).expect("a generation");
        let before = generation();
        let supervisord = Pid::from_raw(server.pid());
        kill(supervisord, Signal::SIGSTOP).unwrap();
        let saved = server
            .save(|toml| toml.replace(REPORTS, &format!("other.{REPORTS}")))
            .await;
        // It is asked for 5 s.
        let written = poll(EDIT, async || (generation() != before).then_some(())).await;
        kill(supervisord, Signal::SIGCONT).unwrap();
        written.expect("a new generation");
        // Well before the timer, which comes after 30 s.
        let finished = tokio::time::timeout(Duration::from_secs(15), server.settled(&saved)).await;
        let status = finished.unwrap_or_else(|_| panic!("it is still owed\n{}", server.logs()));
        assert!(holds(&status, Ready), "{status:#?}");
    });
}
