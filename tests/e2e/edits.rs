//! `vpc.toml` is edited, and the machine follows or says why not.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready};
use dstack_vpc::reconcile::status::Status;

use crate::common::SERVER_APP;
use crate::common::http::{With, get};
use crate::common::load::Load;
use crate::common::machine::{EDIT, Machine, holds, replace};
use crate::common::pair::{Pair, REPORTS};
use crate::common::ports::Port;
use crate::common::run;

#[test]
fn an_edit_goes_live_and_no_request_fails() {
    run(async {
        let pair = Pair::start().await;
        let load = steady(&pair.client);
        let before = backend(&pair, "later.local").await;
        assert_eq!(before, "default");

        let more = format!(
            "\n[[backends]]\nname = \"later\"\nserver_name = \"later.local\"\nupstream = \"{}\"\n",
            pair.reports.addr()
        );
        let status = pair.server.edit(|toml| toml + &more).await;
        assert!(holds(&status, Configured) && holds(&status, Ready), "{status:#?}");
        assert_eq!(backend(&pair, "later.local").await, "reports");

        let status = pair.server.edit(|toml| toml.replace(&more, "")).await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert_eq!(backend(&pair, "later.local").await, "default");
        assert_none_failed(load).await;
    });
}

/// Whoever saves and asks at once is never told of the file before as if it were this one.
#[test]
fn status_knows_which_version_of_the_file_it_is_about() {
    run(async {
        let pair = Pair::start().await;
        let machine = &pair.server;
        let mut last = 0;
        for round in 0..8 {
            let text = fs::read_to_string(&machine.config).unwrap();
            let is_good = round % 2 == 0;
            let text = match is_good {
                true => text.replace("\n[nonsense]\n", &format!("\n# {round}\n")) + &format!("\n# {round}\n"),
                false => text + "\n[nonsense]\n",
            };
            replace(&machine.config, text.as_bytes());
            let observed = |status: &Status| status.config.observed_generation == status.config.generation;
            let status = machine.until(EDIT, "it has been observed", observed).await;
            assert_eq!(holds(&status, Configured), is_good, "{status:#?}");
            assert!(status.config.generation > last, "{status:#?}");
            last = status.config.generation;
        }
    });
}

#[test]
fn who_may_call_changes_in_place() {
    run(async {
        let pair = Pair::start().await;
        let workers = || {
            let processes = pair.server.processes().into_iter();
            let workers = processes
                .filter(|p| p.command.starts_with("nginx: worker"))
                .map(|p| p.pid);
            workers.collect::<BTreeSet<_>>()
        };
        let before = workers();
        let list = format!("server_name = \"{REPORTS}\"\nallowed_apps = [\"{SERVER_APP}\"]");
        let anyone = format!("server_name = \"{REPORTS}\"");
        let status = pair.server.edit(|toml| toml.replace(&anyone, &list)).await;
        assert!(holds(&status, Configured), "{status:#?}");
        assert!(workers().is_subset(&before), "nginx has nothing to do with it");
        let reply = pair.call(get("/").with("host", REPORTS)).await;
        assert_eq!(reply.status, 403, "{}", reply.text());
        pair.server.edit(|toml| toml.replace(&list, &anyone)).await;
        assert_eq!(backend(&pair, REPORTS).await, "reports");
    });
}

#[test]
fn a_listener_moves_and_no_request_fails() {
    run(async {
        let pair = Pair::start().await;
        let load = Load::start(2, pair.client.ports.http.addr(), || {
            get("/load").to_app(SERVER_APP)
        });
        let moved = Port::reserve();
        let old = pair.client.ports.client.to_string();
        let status = pair
            .client
            .edit(|toml| toml.replace(&old, &moved.to_string()))
            .await;
        assert!(holds(&status, Configured), "{status:#?}");
        let reply =
            crate::common::http::send(moved.addr(), get("/at-the-new-place").to_app(SERVER_APP)).await;
        assert_eq!(reply.unwrap().status, 200);
        assert_none_failed(load).await;
    });
}

#[test]
fn a_bad_edit_is_refused_and_the_old_goes_on_serving() {
    run(async {
        let pair = Pair::start().await;
        let good = fs::read_to_string(&pair.server.config).unwrap();
        let load = steady(&pair.client);
        let bad: [(&str, String); 4] = [
            ("syntax", format!("{good}\n[[backends")),
            ("an unknown key", good.replace("http_listen", "http_lisen")),
            (
                "a bad value",
                good.replace("probe_timeout = \"3s\"", "probe_timeout = \"soon\""),
            ),
            ("bytes that are not text", good.clone()),
        ];
        for (what, text) in bad {
            let mut bytes = text.clone().into_bytes();
            if text == good {
                bytes.extend([b'#', 0xff, 0xfe]);
            }
            replace(&pair.server.config, &bytes);
            let refused = |status: &Status| !holds(status, Configured);
            let status = pair.server.until(EDIT, what, refused).await;
            let error = &status.last_error.as_ref().expect("an error").message;
            assert!(error.contains("vpc.toml"), "{what}: {error}");
            assert!(holds(&status, Degraded), "{what}");
            assert_eq!(backend(&pair, REPORTS).await, "reports", "{what}");
            assert_eq!(pair.server.cli(&["check"]).status.code(), Some(1), "{what}");

            replace(&pair.server.config, good.as_bytes());
            let status = pair
                .server
                .until(EDIT, "it follows again", |status| holds(status, Configured))
                .await;
            assert!(!holds(&status, Degraded), "{what}: {status:#?}");
        }
        assert_none_failed(load).await;
    });
}

#[test]
fn a_file_that_is_gone_or_a_directory_ends_nothing() {
    run(async {
        let pair = Pair::start().await;
        let good = fs::read(&pair.server.config).unwrap();
        fs::remove_file(&pair.server.config).unwrap();
        pair.server
            .until(EDIT, "the missing file is noticed", |status| {
                !holds(status, Configured)
            })
            .await;
        assert_eq!(backend(&pair, REPORTS).await, "reports");

        fs::create_dir(&pair.server.config).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(backend(&pair, REPORTS).await, "reports");
        fs::remove_dir(&pair.server.config).unwrap();

        fs::write(&pair.server.config, good).unwrap();
        pair.server
            .until(EDIT, "it follows again", |status| holds(status, Configured))
            .await;
    });
}

#[test]
fn a_mounted_configuration_that_is_swapped_by_links_is_followed() {
    run(async {
        let pair = Pair::start().await;
        // As Kubernetes mounts it: vpc.toml -> ..data/vpc.toml, ..data -> ..<version>, swapped by one rename.
        let dir = pair.server.dir.path();
        let text = fs::read_to_string(&pair.server.config).unwrap();
        let link = |target: &str, name: &str| {
            let new = dir.join(".new-link");
            std::os::unix::fs::symlink(target, &new).unwrap();
            fs::rename(&new, dir.join(name)).unwrap();
        };
        for (version, host) in [("..1", "first.local"), ("..2", "second.local")] {
            fs::create_dir(dir.join(version)).unwrap();
            fs::write(dir.join(version).join("vpc.toml"), text.replace(REPORTS, host)).unwrap();
            link(version, "..data");
            if version == "..1" {
                link("..data/vpc.toml", "vpc.toml");
            }
            let serves = crate::common::poll(EDIT, async || {
                (backend(&pair, host).await == "reports").then_some(())
            });
            assert!(serves.await.is_some(), "{version}\n{}", pair.server.logs());
        }
    });
}

#[test]
fn what_cannot_go_live_leaves_the_old_serving() {
    run(async {
        let pair = Pair::start().await;
        let load = steady(&pair.client);
        // nginx would have to open the one, the daemon itself the other.
        for free in [&pair.server.ports.http, &pair.server.ports.client] {
            let taken = Port::reserve();
            let holder = TcpListener::bind(taken.addr()).unwrap();
            let status = pair
                .server
                .edit(|toml| toml.replace(&free.to_string(), &taken.to_string()))
                .await;
            assert!(!holds(&status, Configured), "{status:#?}");
            assert!(
                holds(&status, Degraded) && status.next_retry.is_some(),
                "{status:#?}"
            );
            let error = status.last_error.expect("an error").message;
            let (port, me) = (taken.number().to_string(), std::process::id().to_string());
            assert!(
                error.contains(&port) && error.contains(&me),
                "names the port and its holder: {error}"
            );
            assert_eq!(backend(&pair, REPORTS).await, "reports");

            // The holder goes away, and what is in the file goes live without another edit.
            drop(holder);
            pair.server
                .until(EDIT, "it is tried again", |status| holds(status, Configured))
                .await;
            pair.server
                .edit(|toml| toml.replace(&taken.to_string(), &free.to_string()))
                .await;
        }
        assert_none_failed(load).await;
    });
}

#[test]
fn a_storm_of_writes_is_followed_in_a_few_looks_to_its_last_word() {
    run(async {
        let pair = Pair::start().await;
        let before = pair.server.status().await.expect("the daemon answers");
        let (file, reports) = (pair.server.config.clone(), pair.reports.addr());
        let writing = tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            let append = |text: &str| {
                let mut file = fs::OpenOptions::new().append(true).open(&file).unwrap();
                std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            };
            for _ in 0..10_000 {
                append("#\n");
            }
            append("[[backends]]\nname = \"last\"\nserver_name = \"last.local\"\n");
            append(&format!("upstream = \"{reports}\"\n"));
            begun.elapsed()
        });
        let serves = crate::common::poll(EDIT, async || {
            (backend(&pair, "last.local").await == "reports").then_some(())
        });
        assert!(serves.await.is_some(), "{}", pair.server.logs());
        let took = writing.await.unwrap();
        let status = pair.server.status().await.expect("the daemon answers");
        let looks = status.counters.reconciles - before.counters.reconciles;
        // One for each pause of 50 ms that the writer makes, and some for other reasons.
        let most = took.div_duration_f64(Duration::from_millis(50)) + 20.0;
        assert!((looks as f64) < most, "{looks} looks in {took:?}");
        assert!(
            status.counters.applied <= before.counters.applied + 2,
            "{status:#?}"
        );
    });
}

fn steady(machine: &Machine) -> Load {
    Load::start(2, machine.ports.http.addr(), || get("/load").to_app(SERVER_APP))
}

async fn assert_none_failed(load: Load) {
    load.answered(20).await;
    let tally = load.stop().await;
    assert!(
        tally.failed.is_empty(),
        "{} answered, failed: {:#?}",
        tally.answered,
        tally.failed
    );
}

/// Which backend answers for a Host; else the status.
async fn backend(pair: &Pair, host: &str) -> String {
    let reply = pair.call(get("/which").with("host", host)).await;
    match reply.json()["backend"].as_str() {
        Some(name) => name.to_owned(),
        None => format!("{} {}", reply.status, reply.text()),
    }
}
