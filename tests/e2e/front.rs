//! From one front to the other and back, on the same ports.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dstack_vpc::reconcile::status::ConditionKind::Configured;

use crate::common::agent::Agent;
use crate::common::backend::Backend;
use crate::common::http::{self, With, get};
use crate::common::load::Load;
use crate::common::machine::{EDIT, Machine, Plan, front as first, holds};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::process::Watchdog;
use crate::common::{SERVER_APP, binary, poll, run};

const FRONTS: [&str; 2] = ["nginx", "builtin"];

fn other(front: &str) -> &'static str {
    FRONTS[usize::from(front == FRONTS[0])]
}

fn runs_nginx(machine: &Machine) -> bool {
    let processes = machine.processes();
    processes
        .iter()
        .any(|process| process.command.starts_with("nginx: "))
}

/// What callers see of a port that nobody listens on, or no longer.
fn is_absence(failed: &str) -> bool {
    let from_afar = ["\"connect_refused\"", "\"tls_failed\"", "\"peer_closed\""];
    match failed.split_once(": ") {
        Some(("502", body)) => from_afar.iter().any(|code| body.contains(code)),
        _ => !failed.starts_with(|c: char| c.is_ascii_digit()),
    }
}

async fn switch(machine: &Machine, from: &str, to: &str) {
    let (from, to) = (format!("front = \"{from}\""), format!("front = \"{to}\""));
    let status = machine.edit(|toml| toml.replace(&from, &to)).await;
    assert!(holds(&status, Configured), "{status:#?}");
}

#[test]
fn the_ports_change_hands_there_and_back() {
    run(async {
        let pair = Pair::start().await;
        let call = || get("/who").to_app(SERVER_APP);
        let mut now = first();
        for _ in 0..2 {
            let next = other(&now);
            for machine in [&pair.server, &pair.client] {
                let load = Load::start(2, pair.client.ports.http.addr(), || {
                    get("/load").to_app(SERVER_APP)
                });
                let began = Instant::now();
                switch(machine, &now, next).await;
                let took = began.elapsed();
                let tally = load.stop().await;
                // Nobody was there for a moment; but nobody who was there gave a wrong answer.
                let wrong: Vec<_> = tally.failed.iter().filter(|failed| !is_absence(failed)).collect();
                assert!(wrong.is_empty(), "{now} to {next}: {wrong:#?}");
                println!("{} answered, {} not", tally.answered, tally.failed.len());
                let answered = poll(EDIT, async || {
                    let reply = pair.client.call(call()).await.ok()?;
                    (reply.status == 200).then_some(())
                });
                answered.await.expect("calls go through");
                println!("{now} to {next}: {took:?}");
                let gone = poll(Duration::from_secs(10), async || {
                    (runs_nginx(machine) == (next == "nginx")).then_some(())
                });
                gone.await.expect("nginx runs only where it is the front");
            }
            next.clone_into(&mut now);
        }
        assert_eq!(now, first());
    });
}

#[test]
fn a_front_that_is_not_installed_takes_no_port() {
    run(async {
        let pair = Pair::start_with(|_, server| {
            server.toml = server.toml.replace("front = \"nginx\"", "front = \"builtin\"");
        })
        .await;
        let status = pair
            .server
            .edit(|toml| {
                let toml = toml.replace("front = \"builtin\"", "front = \"nginx\"");
                toml + "[nginx]\nprogram = \"/nowhere/nginx\"\n"
            })
            .await;
        assert!(!holds(&status, Configured), "{status:#?}");
        let why = &status.last_error.expect("why").message;
        assert!(
            why.contains("built-in front") && why.contains("nginx is not installed"),
            "{why}"
        );
        let reply = pair.client.call(get("/who").to_app(SERVER_APP)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
}

/// Neither nginx nor supervisord nor anything else: the daemon is all that runs.
#[test]
fn the_binary_alone_is_in_the_mesh() {
    run(async {
        let (agent, backend, nowhere) = (
            Agent::start().await,
            Backend::start("alone").await,
            Port::reserve(),
        );
        let backends = [("default", "_", backend.addr())];
        let plan = Plan::new(&agent.socket(SERVER_APP), nowhere.addr(), &backends);
        let front = format!("front = \"{}\"", first());
        let config = plan.dir.path().join("vpc.toml");
        let itself = plan
            .toml
            .replace(&nowhere.to_string(), &plan.ports.https.to_string());
        std::fs::write(&config, itself.replace(&front, "front = \"builtin\"")).expect("vpc.toml");
        let mut daemon = Command::new(binary())
            .env_clear()
            .env("PATH", "/nowhere")
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--state-dir".as_ref(), plan.dir.path().join("state").as_os_str()])
            .arg("run")
            .stdin(Stdio::null())
            .stderr(File::create(plan.dir.path().join("log")).expect("a log file"))
            .spawn()
            .expect("the daemon");
        let _watchdog = Watchdog::over(daemon.id());
        let called = poll(EDIT, async || {
            let call = get("/alone").to_app(SERVER_APP);
            let reply = http::send(plan.ports.http.addr(), call).await.ok()?;
            (reply.status == 200).then(|| reply.json())
        });
        let called = called.await;
        let _ = daemon.kill();
        let _ = daemon.wait();
        let log = std::fs::read_to_string(plan.dir.path().join("log")).unwrap_or_default();
        assert_eq!(called.expect(&log)["backend"], "alone");
    });
}

#[test]
fn a_front_that_cannot_open_its_ports_leaves_the_other_one_serving() {
    run(async {
        let pair = Pair::start().await;
        let server = &pair.server;
        let now = first();
        let next = other(&now);
        let stranger = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let taken = stranger.local_addr().expect("an address");
        let status = server
            .edit(|toml| {
                let moved = format!("https_listen = \"{}\"", server.ports.https);
                let toml = toml.replace(&moved, &format!("https_listen = \"{taken}\""));
                toml.replace(&format!("front = \"{now}\""), &format!("front = \"{next}\""))
            })
            .await;
        assert!(!holds(&status, Configured), "{status:#?}");
        let reply = pair.client.call(get("/who").to_app(SERVER_APP)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(runs_nginx(server), now == "nginx");
    });
}
