//! Changes on trial: confirmed or taken back; and the way back to any kept generation.

use std::process::Output;
use std::time::Duration;

use dstack_vpc::apply::{Real, generation};
use dstack_vpc::reconcile::status::ConditionKind::{Configured, Degraded, Ready};
use dstack_vpc::reconcile::status::{Event, Status};

use crate::common::http::{With, get};
use crate::common::machine::{EDIT, Machine, has_nginx, holds};
use crate::common::pair::{Pair, REPORTS};
use crate::common::{SERVER_APP, poll, run};

/// The edit of these tests: the caller is shut out of one backend.
fn shut_out(toml: String) -> String {
    let anyone = format!("server_name = \"{REPORTS}\"");
    toml.replace(&anyone, &format!("{anyone}\nallowed_apps = [\"{SERVER_APP}\"]"))
}

async fn is_let_in(pair: &Pair) -> bool {
    let reply = pair.call(get("/").with("host", REPORTS)).await;
    match reply.status {
        200 => true,
        403 => false,
        other => panic!("{other}: {}", reply.text()),
    }
}

fn said(output: &Output) -> (Option<i32>, String) {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

fn is_held(status: &Status) -> bool {
    status.rollout.held.is_some() && status.condition(Configured).is_some_and(|it| it.reason == "Held")
}

fn files(machine: &Machine) -> Vec<(String, Vec<u8>)> {
    let names = [
        "supervisor/supervisord.conf",
        "daemon/vpc.toml",
        "nginx/nginx.conf",
    ];
    let names = &names[..if has_nginx() { 3 } else { 2 }];
    let read = |name: &&str| std::fs::read(machine.state.current().join(name)).expect("a rendered file");
    names
        .iter()
        .map(|name| ((*name).to_owned(), read(name)))
        .collect()
}

#[test]
fn a_rollback_holds_until_the_file_changes_or_apply_is_given() {
    run(async {
        let mut pair = Pair::start().await;
        let (before, first) = (files(&pair.server), pair.server.until_ready().await.generation);
        pair.server.edit(shut_out).await;
        assert!(!is_let_in(&pair).await);

        let (code, text) = said(&pair.server.cli(&["rollback", "999"]));
        assert_eq!(code, Some(1), "{text}");
        assert!(
            text.contains("no generation 999") && text.contains("kept are"),
            "{text}"
        );
        assert!(!is_let_in(&pair).await);

        let (code, text) = said(&pair.server.cli(&["rollback"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(is_let_in(&pair).await);
        let status = pair.server.until(EDIT, "it is held", is_held).await;
        assert!(holds(&status, Ready) && holds(&status, Degraded), "{status:#?}");
        assert_eq!(status.generation, first, "the kept one is used as it is");
        assert_eq!(files(&pair.server), before);
        let (_, text) = said(&pair.server.cli(&["status"]));
        assert!(
            text.contains("held since") && text.contains("dstack-vpc apply"),
            "{text}"
        );

        pair.server = pair.server.crash_and_spawn();
        let up = |status: &Status| is_held(status) && holds(status, Ready);
        pair.server
            .until(Duration::from_secs(60), "it is up and held", up)
            .await;
        assert!(is_let_in(&pair).await, "a restart changes nothing");

        let (code, text) = said(&pair.server.cli(&["apply"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(!is_let_in(&pair).await);

        assert_eq!(said(&pair.server.cli(&["rollback"])).0, Some(0));
        assert!(is_let_in(&pair).await);
        // A comment is a change too.
        pair.server.save(|toml| toml + "\n# once more\n").await;
        let follows = |status: &Status| holds(status, Configured);
        pair.server.until(EDIT, "it follows the file", follows).await;
        assert!(!is_let_in(&pair).await);

        let (code, text) = said(&pair.server.cli(&["history"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("`dstack-vpc rollback` by "), "{text}");
        assert!(text.contains("`dstack-vpc apply` by "), "{text}");
    });
}

#[test]
fn what_is_not_confirmed_in_time_goes_back() {
    run(async {
        let pair = Pair::start().await;
        pair.server.save(shut_out).await;
        let (code, text) = said(&pair.server.cli(&["apply", "--confirm", "4s"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("serves again in 4 s"), "{text}");
        assert!(!is_let_in(&pair).await);
        let (_, text) = said(&pair.server.cli(&["status"]));
        assert!(text.contains("wants `dstack-vpc confirm` within"), "{text}");
        pair.server.until(EDIT, "it is held", is_held).await;
        assert!(is_let_in(&pair).await);
        let (code, text) = said(&pair.server.cli(&["confirm"]));
        assert_eq!(code, Some(1), "it is too late: {text}");

        // The same again, confirmed.
        let (code, text) = said(&pair.server.cli(&["apply", "--confirm", "5m"]));
        assert_eq!(code, Some(0), "{text}");
        let (code, text) = said(&pair.server.cli(&["confirm"]));
        assert_eq!(code, Some(0), "{text}");
        let status = pair.server.status().await.expect("the daemon answers");
        assert_eq!(status.rollout.unconfirmed, None);
        let counters = &status.counters;
        assert_eq!(
            (counters.not_confirmed, counters.confirmed),
            (1, 1),
            "{counters:?}"
        );
        assert!(!is_let_in(&pair).await);
        let (code, text) = said(&pair.server.cli(&["apply", "--confirm", "1s"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(
            text.contains("nothing to do") && text.contains("confirmed"),
            "{text}"
        );
    });
}

#[test]
fn the_time_to_confirm_runs_on_over_a_restart() {
    run(async {
        let mut pair = Pair::start().await;
        // Noticed and live before anybody asks for a trial.
        pair.server.edit(shut_out).await;
        assert!(!is_let_in(&pair).await);
        let (code, text) = said(&pair.server.cli(&["apply", "--confirm", "1s"]));
        assert_eq!(code, Some(0), "{text}");
        pair.server = pair.server.crash_and_spawn();
        let up = |status: &Status| is_held(status) && holds(status, Ready);
        pair.server
            .until(Duration::from_secs(60), "it went back", up)
            .await;
        assert!(is_let_in(&pair).await);
    });
}

#[test]
fn a_template_is_gone_back_from_as_well() {
    run(async {
        let pair = Pair::start().await;
        let folder = pair.server.config.parent().expect("a folder").join("templates");
        std::fs::create_dir_all(&folder).expect("a folder for templates");
        let (file, text) = match has_nginx() {
            true => (
                "nginx/nginx.conf",
                include_str!("../../templates/nginx.conf.tera"),
            ),
            false => (
                "supervisor/supervisord.conf",
                include_str!("../../templates/supervisord.conf.tera"),
            ),
        };
        let (_, name) = file.split_once('/').expect("a folder");
        let template = folder.join(format!("{name}.tera"));
        std::fs::write(template, format!("{text}\n# odd\n")).expect("a template");
        let (code, text) = said(&pair.server.cli(&["apply"]));
        assert_eq!(code, Some(0), "{text}");
        let overridden = |machine: &Machine| {
            let conf = std::fs::read_to_string(machine.state.current().join(file));
            conf.expect(file).contains("# odd")
        };
        assert!(overridden(&pair.server));

        let (code, text) = said(&pair.server.cli(&["rollback"]));
        assert_eq!(code, Some(0), "{text}");
        assert!(!overridden(&pair.server), "the templates of then");
        let status = pair.server.status().await.expect("the daemon answers");
        assert_eq!(status.counters.gone_back, 1, "{status:#?}");
        assert_eq!(pair.call(get("/")).await.status, 200);
    });
}

#[test]
fn a_generation_is_kept_while_it_is_needed_and_any_kept_one_can_be_gone_back_to() {
    run(async {
        let pair = Pair::start_with(|_, server| {
            server.toml = server.toml.replace("[reconcile]\n", "[reconcile]\nkeep = 2\n");
        })
        .await;
        let server = &pair.server;
        // Its Host is another one each time, which is nginx's affair, too.
        let rename = |toml: String, from: &str, to: &str| toml.replace(from, to);
        let kept = async |wanted: &[u32]| {
            let all = || generation::all(&Real::new(&server.state, None), &server.state);
            let found = poll(EDIT, async || (all().ok()? == wanted).then_some(())).await;
            assert!(found.is_some(), "{:?} and not {wanted:?}", all());
        };
        let first = server.until_ready().await.generation.expect("a generation");
        server.edit(|toml| rename(toml, REPORTS, "b.local")).await;
        let good = first + 1;
        let wanted = files(server);
        server.save(|toml| rename(toml, "b.local", "c.local")).await;
        let (code, text) = said(&server.cli(&["apply", "--confirm", "5m"]));
        assert_eq!(code, Some(0), "{text}");
        let unconfirmed = |status: &Status| status.rollout.unconfirmed.as_ref().map(|it| it.back_to);
        let status = server.status().await.expect("the daemon answers");
        // The edit may have been live before anybody asked for a trial: the way back leads to the same one.
        assert_eq!(unconfirmed(&status), Some(good), "{status:#?}");
        for (from, to) in [("c.local", "d.local"), ("d.local", "e.local")] {
            server.edit(|toml| rename(toml, from, to)).await;
        }
        kept(&[good, good + 2, good + 3]).await;
        let (_, text) = said(&server.cli(&["status"]));
        let (_, rest) = text
            .split_once("wants `dstack-vpc confirm` within ")
            .expect("a countdown");
        let (seconds, _) = rest.split_once("s,").expect("seconds");
        let left: u32 = seconds.parse().expect("a number");
        assert!((200..=300).contains(&left), "{left}");

        let (code, text) = said(&server.cli(&["rollback", &good.to_string()]));
        assert_eq!(code, Some(0), "{text}");
        let status = server.status().await.expect("the daemon answers");
        assert_eq!(status.generation, Some(good), "the kept one is used as it is");
        assert!(is_held(&status) && unconfirmed(&status).is_none(), "{status:#?}");
        assert_eq!(files(server), wanted);
        let reply = pair.call(get("/").with("host", "b.local")).await;
        assert_eq!(reply.json()["backend"], "reports", "{}", reply.text());

        // Nothing needs it any more as soon as another one serves.
        let (code, text) = said(&server.cli(&["apply"]));
        assert_eq!(code, Some(0), "{text}");
        kept(&[good + 3, good + 4]).await;

        let lines = server.cli(&["history", "--json"]).stdout;
        let lines = String::from_utf8(lines).expect("text");
        let events: Vec<Event> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("an event"))
            .collect();
        let back = events.iter().find(|event| event.cause.contains("rollback"));
        let back = back.unwrap_or_else(|| panic!("{events:#?}"));
        assert_eq!((back.generation, back.outcome.as_str()), (Some(good), "live"));
        assert!(back.cause.contains(" by "), "{back:?}");
        let changed = back
            .detail
            .contains("(server_name of backend \"reports\" changed)");
        let reloaded = back.detail.contains("nginx: reload") && back.act_ms > 0;
        assert!(changed && (reloaded || !has_nginx()), "{back:?}");
    });
}
