//! Programs that end, are stopped, cannot start or hang.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready, ServicesHealthy};
use dstack_vpc::reconcile::status::{Condition, ConditionKind, Drift, Status};
use dstack_vpc::supervisor::Supervisor;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use crate::common::http::{With, get};
use crate::common::machine::{Machine, Plan, has_nginx, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{poll, run};

/// It takes supervisord a second or two to start a program again, and a busy machine some more.
const SOON: Duration = Duration::from_secs(60);

/// Only events tell the machine anything: its timer does not come within a test.
fn without_timer(plan: &mut Plan) {
    plan.toml = plan
        .toml
        .replace("[reconcile]\n", "[reconcile]\ninterval = \"1h\"\n");
}

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
    Pair::start_with(|_, server| {
        server.insist_on_nginx();
        without_timer(server);
    })
    .await
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
        // Until then the daemon looks once a second.
        let steady = |status: &Status| status.services.values().all(|it| it.detail.contains("uptime"));
        pair.server.until(SOON, "all have run for a while", steady).await;
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
        let pair = Pair::start_with(|_, server| without_timer(server)).await;
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

/// A new front does not come to serve for as long as it may take, and the daemon is killed meanwhile.
#[test]
fn what_an_operator_stops_while_an_apply_is_unfinished_stays_so() {
    run(async {
        let elsewhere = Port::reserve();
        let pair = Pair::start_with(|_, server| {
            server.insist_on_nginx();
            let other = format!(
                "return 200 {{% if http.address == \"{elsewhere}\" %}}other{{% else %}}{{{{ tag }}}}{{% endif %}};"
            );
            let template = include_str!("../../templates/nginx.conf.tera");
            let template = template.replace("return 200 {{ tag }};", &other);
            let templates = server.dir.path().join("templates");
            std::fs::create_dir(&templates).unwrap();
            std::fs::write(templates.join("nginx.conf.tera"), template).unwrap();
            server.toml = server.toml.replace("probe_timeout = \"3s\"", "probe_timeout = \"30s\"");
        })
        .await;
        let server = &pair.server;
        let daemon = pid(server, " run");
        let front = server.ports.http.to_string();
        server
            .save(|toml| toml.replace(&front, &elsewhere.to_string()))
            .await;
        let unfinished = poll(SOON, async || TcpStream::connect(elsewhere.addr()).await.ok());
        unfinished.await.expect("nginx serves its new file");
        assert!(
            server.state.run().join("journal.json").exists(),
            "{}",
            server.logs()
        );
        kill(daemon, Signal::SIGKILL).unwrap();
        supervisor(server).stop("nginx", Some(SOON)).await.unwrap();
        let settled = |status: &Status| {
            status.pid != daemon.as_raw() as u32 && status.generation.is_some() && !status.owed
        };
        let status = server
            .until(SOON, "the next daemon is done with it", settled)
            .await;
        assert!(is("stopped by hand")(&status), "{status:#?}");
        assert!(
            !server
                .processes()
                .iter()
                .any(|it| it.command.starts_with("nginx: master"))
        );
    });
}

/// As a daemon leaves it that is killed in the moment in which it exchanges nginx: the master is held, the workers go.
#[test]
fn an_nginx_that_was_held_to_be_exchanged_does_not_stay_so() {
    run(async {
        let pair = with_nginx().await;
        let server = &pair.server;
        let (daemon, master) = (pid(server, " run"), pid(server, "nginx: master"));
        kill(master, Signal::SIGSTOP).unwrap();
        killpg(master, Signal::SIGQUIT).unwrap();
        kill(daemon, Signal::SIGKILL).unwrap();
        let answered = poll(SOON, async || {
            let call = server.call(get("/health")).await.ok()?;
            (call.status == 200).then_some(())
        });
        answered.await.unwrap_or_else(|| panic!("{}", server.logs()));
        assert_ne!(pid(server, "nginx: master"), master);
    });
}

/// An nginx that cannot write its pid ends right after each start: supervisord tries again and again, or gives up.
async fn cannot_start(template: &str, reason: &str) {
    let pair = Pair::start_with(|_, server| {
        server.insist_on_nginx();
        without_timer(server);
        let templates = server.dir.path().join("templates");
        std::fs::create_dir(&templates).unwrap();
        std::fs::write(templates.join("supervisord.conf.tera"), template).unwrap();
    })
    .await;
    let server = &pair.server;
    let pid_file = server.state.run().join("nginx.pid");
    let master = pid(server, "nginx: master");
    std::fs::remove_file(&pid_file).unwrap();
    std::fs::create_dir(&pid_file).unwrap();
    kill(master, Signal::SIGTERM).unwrap();
    let is_told = |status: &Status| {
        let healthy = status.condition(ServicesHealthy);
        healthy.is_some_and(|healthy| !healthy.holds() && healthy.reason == reason)
    };
    let status = server.until(SOON, reason, is_told).await;
    assert!(holds(&status, Degraded) && !holds(&status, Ready), "{status:#?}");
    assert_eq!(server.cli(&["healthcheck"]).status.code(), Some(1));
    std::fs::remove_dir(&pid_file).unwrap();
    let counted =
        |status: &Status| holds(status, Ready) && status.counters.drift.contains_key(&Drift::Program);
    server.until(SOON, "it is started again", counted).await;
    assert_eq!(pair.call(get("/again")).await.status, 200);
}

#[test]
fn a_program_that_does_not_start_is_told_of_and_started_once_it_can_be() {
    run(async {
        let ours = include_str!("../../templates/supervisord.conf.tera");
        let impatient = ours.replace("startretries=1000", "startretries=0");
        tokio::join!(cannot_start(ours, "Failing"), cannot_start(&impatient, "GivenUp"));
    });
}
