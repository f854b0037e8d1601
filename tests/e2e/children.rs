//! Programs that end, are stopped, cannot start or hang.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready, ServicesHealthy};
use dstack_vpc::reconcile::status::{Condition, ConditionKind, Drift, Status};
use dstack_vpc::supervisor::Supervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::http::{With, get};
use crate::common::machine::{Machine, has_nginx, holds};
use crate::common::pair::Pair;
use crate::common::{poll, run};

/// It takes supervisord a second or two to start a program again, and a busy machine some more.
const SOON: Duration = Duration::from_secs(60);

fn condition(status: &Status, kind: ConditionKind) -> &Condition {
    status.condition(kind).expect("the condition")
}

fn is(machine: &'static str) -> impl Fn(&Status) -> bool {
    move |status| {
        status
            .services
            .get("nginx")
            .is_some_and(|nginx| nginx.state == machine)
    }
}

/// The first process that is called so.
fn pid(machine: &Machine, title: &str) -> Pid {
    let found = machine.processes();
    let found = found.iter().find(|process| process.command.contains(title));
    Pid::from_raw(found.unwrap_or_else(|| panic!("{title}")).pid)
}

/// The program that ends, is stopped or cannot start: the built-in front is none, and ends with the daemon.
async fn with_nginx() -> Pair {
    Pair::start_with(|_, server| server.insist_on_nginx()).await
}

fn supervisor(machine: &Machine) -> Supervisor {
    Supervisor::new(machine.state.supervisor_socket())
}

fn add_backend(toml: String, pair: &Pair) -> String {
    let addr = pair.reports.addr();
    toml + &format!(
        "\n[[backends]]\nname = \"later\"\nserver_name = \"later.local\"\nupstream = \"{addr}\"\n"
    )
}

#[test]
fn a_killed_nginx_is_noticed_comes_back_and_is_counted() {
    run(async {
        let pair = with_nginx().await;
        kill(pid(&pair.server, "nginx: master"), Signal::SIGKILL).unwrap();
        let counted = |status: &Status| {
            status.counters.drift.get(&Drift::Program) == Some(&1)
                && holds(status, Ready)
                && !holds(status, Degraded)
        };
        let status = pair.server.until(SOON, "it is back and counted", counted).await;
        let told = status
            .history
            .iter()
            .any(|event| event.cause.contains("nginx had ended by itself"));
        assert!(told, "{:#?}", status.history);
        assert_eq!(pair.call(get("/again")).await.status, 200);
    });
}

#[test]
fn what_an_operator_stopped_stays_so_through_edits() {
    run(async {
        let pair = with_nginx().await;
        let server = &pair.server;
        supervisor(server).stop("nginx", Some(SOON)).await.unwrap();
        let status = server.until(SOON, "it is told", is("stopped by hand")).await;
        let healthy = condition(&status, ServicesHealthy);
        assert_eq!(
            (healthy.reason.as_str(), holds(&status, Ready)),
            ("StoppedByHand", false)
        );
        assert!(
            healthy.message.contains("supervisorctl start nginx"),
            "{}",
            healthy.message
        );

        // Other files for nginx, and another way to run it.
        let edit = |toml| add_backend(toml, &pair) + "\n[supervisor]\noutput = \"files\"\n";
        let status = server.edit(edit).await;
        assert!(
            holds(&status, Configured) && is("stopped by hand")(&status),
            "{status:#?}"
        );
        // Nor does a daemon that is new, nor one that was cut off, start it.
        kill(pid(server, " run"), Signal::SIGKILL).unwrap();
        let new = |now: &Status| now.pid != status.pid && !now.services.is_empty();
        let status = server.until(SOON, "there is a new daemon", new).await;
        assert!(is("stopped by hand")(&status), "{status:#?}");

        supervisor(server).start("nginx", None).await.unwrap();
        let status = server.until_ready().await;
        assert_eq!(status.counters.drift.get(&Drift::Program), None, "{status:#?}");
        // It counts as running before it has opened its ports.
        let serves = poll(SOON, async || {
            let reply = pair.call(get("/which").with("host", "later.local")).await;
            (reply.json()["backend"] == "reports").then_some(())
        });
        assert!(serves.await.is_some(), "{}", server.logs());
    });
}

fn is_front(command: &str) -> bool {
    match has_nginx() {
        true => command.starts_with("nginx: "),
        false => command.ends_with(" run"),
    }
}

/// Takes a port in the moment in which nobody has it.
fn snatch(addr: SocketAddr) -> TcpListener {
    let end = Instant::now() + SOON;
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < end, "{addr}: {error}"),
        }
    }
}

#[test]
fn a_stranger_on_the_fronts_port_is_named_until_it_leaves() {
    run(async {
        let pair = Pair::start().await;
        let server = &pair.server;
        let addr = server.ports.http.addr();
        let stranger = loop {
            let found = server.processes();
            for process in found.iter().filter(|process| is_front(&process.command)) {
                // The workers may be gone with their master.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            let stranger = snatch(addr);
            // supervisord may have been as quick.
            let now = server.processes();
            if !now
                .iter()
                .any(|process| process.command.starts_with("nginx: worker"))
            {
                break stranger;
            }
        };
        let me = std::process::id().to_string();
        let named = |status: &Status| {
            let ready = status.condition(Ready);
            let message = ready.filter(|it| !it.holds()).map(|it| it.message.as_str());
            message.is_some_and(|message| message.contains(&addr.to_string()) && message.contains(&me))
        };
        let status = server.until(SOON, "the stranger is named", named).await;
        assert!(!holds(&status, Ready) && holds(&status, Degraded), "{status:#?}");
        // supervisord takes a program for well that tries and tries to open its port.
        let again = Instant::now();
        while again.elapsed() < Duration::from_secs(5) {
            let status = server.status().await.expect("the daemon answers");
            assert!(!holds(&status, Ready), "{status:#?}");
            // Nobody has edited anything.
            assert_ne!(condition(&status, Configured).reason, "Refused", "{status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(stranger);
        let counted = |status: &Status| {
            let counted = status.counters.drift.contains_key(&Drift::Program);
            // The daemon does not count its own ends.
            holds(status, Ready) && !holds(status, Degraded) && (counted || !has_nginx())
        };
        server.until(SOON, "it serves again", counted).await;
        assert_eq!(pair.call(get("/again")).await.status, 200);
    });
}

#[test]
fn a_program_that_was_given_up_is_started_once_it_can_be() {
    run(async {
        let pair = Pair::start_with(|_, server| {
            server.insist_on_nginx();
            // As ours, but supervisord gives up at once.
            let template = include_str!("../../templates/supervisord.conf.tera")
                .replace("startretries=1000", "startretries=0");
            let templates = server.dir.path().join("templates");
            std::fs::create_dir(&templates).unwrap();
            std::fs::write(templates.join("supervisord.conf.tera"), template).unwrap();
        })
        .await;
        let server = &pair.server;
        // A folder where nginx has to write its pid: it ends right after its start.
        let pid_file = server.state.run().join("nginx.pid");
        let master = pid(server, "nginx: master");
        std::fs::remove_file(&pid_file).unwrap();
        std::fs::create_dir(&pid_file).unwrap();
        kill(master, Signal::SIGTERM).unwrap();
        let given_up = |status: &Status| {
            status
                .condition(ServicesHealthy)
                .is_some_and(|condition| condition.reason == "GivenUp")
        };
        let status = server.until(SOON, "it is given up", given_up).await;
        assert!(holds(&status, Degraded) && !holds(&status, Ready), "{status:#?}");
        assert_eq!(server.cli(&["healthcheck"]).status.code(), Some(1));
        std::fs::remove_dir(&pid_file).unwrap();
        let counted =
            |status: &Status| holds(status, Ready) && status.counters.drift.contains_key(&Drift::Program);
        server.until(SOON, "it is started again", counted).await;
        assert_eq!(pair.call(get("/again")).await.status, 200);
    });
}
