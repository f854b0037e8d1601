//! What stays when the server does not, and what happens when many come at once.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dstack_vpc::api::Api;
use futures_util::future::join_all;

use crate::common::http::{With, post, send};
use crate::common::poll;
use crate::common::process::Watchdog;
use crate::kit::*;
use crate::place::Place;

#[tokio::test]
async fn a_restart_loses_nothing() {
    let place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    let registered = server
        .get(OURS, "/api/register?instance_id=n-1&node_name=db")
        .await
        .json();
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    let before = server.get(OURS, "/api/nodes").await.text();
    let found = server.get(OURS, "/api/discover/db?wait=1s").await.text();
    let (dir, settings) = (Arc::clone(&server.dir), server.api.settings());
    server.api.shutdown().await;

    let server = Server::again(dir, (*settings).clone()).await;
    server.until_well().await;
    assert_eq!(server.get(OURS, "/api/nodes").await.text(), before);
    // The index too: who waits goes on waiting.
    assert_eq!(server.get(OURS, "/api/discover/db?wait=1s").await.text(), found);
    let again = server.get(OURS, "/api/register?instance_id=n-1").await.json();
    assert_eq!(again["shared_key"], registered["shared_key"]);
    assert_ne!(again["pre_auth_key"], registered["pre_auth_key"]);
    assert_eq!(
        server.get(THEIRS, "/api/register?instance_id=n-1").await.status,
        403
    );
    server.api.shutdown().await;
}

#[tokio::test]
async fn the_shared_key_is_never_lost_or_shown() {
    let server = Server::start().await;
    server.until(|status| status.problems.is_empty()).await;
    let file = server.state().secrets().join("shared_key");
    let kept = std::fs::read_to_string(&file).expect("the shared key");
    assert_eq!(STANDARD.decode(&kept).expect("base64").len(), 64);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&server.state().secrets())), (0o600, 0o700));
    assert!(!format!("{:?}", server.api.status().borrow()).contains(&kept));
    let dir = Arc::clone(&server.dir);
    server.api.shutdown().await;

    // The copy is gone: the registry has it.
    std::fs::remove_file(&file).expect("removed");
    let server = Server::again(Arc::clone(&dir), settings()).await;
    server.until(|status| status.problems.is_empty()).await;
    assert_eq!(std::fs::read_to_string(&file).expect("the copy"), kept);
    server.api.shutdown().await;

    // The registry is new: the copy seeds it.
    std::fs::remove_dir_all(server_registry(&dir)).expect("removed");
    let server = Server::again(Arc::clone(&dir), settings()).await;
    server.until(|status| status.problems.is_empty()).await;
    server.api.shutdown().await;
    std::fs::remove_file(&file).expect("removed");
    let server = Server::again(Arc::clone(&dir), settings()).await;
    server.until(|status| status.problems.is_empty()).await;
    assert_eq!(std::fs::read_to_string(&file).expect("the copy"), kept);
    server.api.shutdown().await;

    // A damaged copy is said, and stays as it is; nodes are found meanwhile.
    for damaged in [
        &kept[..40],
        "",
        "not base64 at all",
        &STANDARD.encode([1; 63]),
        &"A".repeat(4000),
    ] {
        std::fs::write(&file, damaged).expect("written");
        let server = Server::again(Arc::clone(&dir), settings()).await;
        let is_said = |problem: &String| problem.contains("shared_key does not hold 64 bytes");
        let status = server.until(|status| status.problems.iter().any(is_said)).await;
        assert!(!format!("{status:?}").contains(&kept[..40]));
        let reply = server.get(OURS, "/api/register?instance_id=n-1").await;
        assert_eq!(
            (reply.status, words(&reply).as_str()),
            (
                503,
                "this server has no shared key at the moment; try again later"
            )
        );
        server.announce(OURS, "n-2", "db", "100.128.0.1").await;
        assert_eq!(server.get(OURS, "/api/discover/db").await.status, 200);
        assert_eq!(std::fs::read_to_string(&file).expect("the copy"), damaged);
        // Repaired, it is taken without a restart.
        std::fs::write(&file, format!("{kept}\n")).expect("written");
        server.until(|status| status.problems.is_empty()).await;
        server.api.shutdown().await;
    }
}

fn server_registry(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dstack_vpc::paths::StateDir::new(dir.path()).registry()
}

#[tokio::test]
async fn a_registry_that_cannot_be_opened_is_said_and_tried_again() {
    let server = Server::start().await;
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    let dir = Arc::clone(&server.dir);
    server.api.shutdown().await;
    let files = || {
        std::fs::read_dir(server_registry(&dir))
            .expect("the registry")
            .map(|entry| entry.expect("an entry").path())
            .max_by_key(|path| std::fs::metadata(path).expect("a file").len())
            .expect("a file")
    };
    let file = files();
    let kept = std::fs::read(&file).expect("the registry");
    std::fs::write(&file, &kept[..100]).expect("truncated");

    let server = Server::again(Arc::clone(&dir), settings()).await;
    let is_said =
        |problem: &String| problem.contains("registry") && problem.contains(&*file.to_string_lossy());
    server.until(|status| status.problems.iter().any(is_said)).await;
    for reply in [
        server.get(OURS, "/api/nodes").await,
        server.get(OURS, "/api/discover/db").await,
        server.get(OURS, "/api/discover/db?wait=50s").await,
        server.get(OURS, "/api/register?instance_id=n-1").await,
        server.post(OURS, "/api/nodes/update?uuid=n-1").await,
    ] {
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (
                503,
                r#"{"error":"the registry cannot be used at the moment; try again later"}"#
            )
        );
    }
    assert_eq!(server.get(OURS, "/health").await.text(), "OK");
    assert!(
        server
            .api
            .nodes()
            .await
            .expect_err("a sentence")
            .contains("registry")
    );
    assert_eq!(
        std::fs::read(&file).expect("the registry").len(),
        100,
        "never started empty over it"
    );
    // The backup is put back, and all is well without a restart.
    std::fs::write(&file, kept).expect("written");
    server
        .until(|status| status.problems.is_empty() && status.nodes == 1)
        .await;
    assert_eq!(server.get(OURS, "/api/discover/db").await.status, 200);
    server.api.shutdown().await;
}

#[tokio::test]
async fn other_registry_settings_open_it_anew_under_load() {
    let server = Arc::new(Server::start().await);
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;
    let waiter = tokio::spawn({
        let server = Arc::clone(&server);
        let known = server.get(OURS, "/api/discover/db?wait=1s").await.json()["index"].as_u64();
        async move {
            server
                .get(
                    OURS,
                    &format!("/api/discover/db?wait=50s&index={}", known.unwrap_or(0)),
                )
                .await
        }
    });
    let load = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            for n in 0..200 {
                server
                    .announce(OURS, &format!("l-{n}"), "load", "100.128.0.1")
                    .await;
            }
        }
    });
    for n in 1..6 {
        let mut changed = settings();
        changed.registry.silence = Duration::from_secs(3600 + n);
        server.api.update(changed).await.expect("updated");
        tokio::task::yield_now().await;
    }
    load.await.expect("no request failed");
    // Whoever waited has followed to the new registry.
    server.announce(OURS, "n-2", "db", "100.128.0.2").await;
    assert_eq!(waiter.await.expect("an answer").json()["count"], 2);
    assert_eq!(server.api.nodes().await.expect("the nodes").len(), 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_each_registered_once() {
    const MANY: usize = 200;
    let place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    let known = server.api.nodes().await.expect("the nodes").len();
    // On a slow machine some are told to come again; nobody is refused.
    let replies = join_all((0..MANY).map(async |n| {
        loop {
            let path = format!("/api/register?instance_id=n-{n}&node_name=n-{n}");
            let reply = server.get_at_last(OURS, &path).await;
            if reply.status != 503 {
                return reply;
            }
            assert!(
                words(&reply).contains("too many nodes register at once"),
                "{}",
                reply.text()
            );
        }
    }))
    .await;
    let keys: BTreeSet<_> = replies
        .iter()
        .map(|reply| {
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()["pre_auth_key"].as_str().expect("a key").to_owned()
        })
        .collect();
    let shared: BTreeSet<_> = replies
        .iter()
        .map(|reply| reply.json()["shared_key"].to_string())
        .collect();
    assert_eq!((keys.len(), shared.len()), (MANY, 1));
    assert_eq!(server.api.nodes().await.expect("the nodes").len(), known + MANY);

    // The same node from everywhere at once is one record; of two apps at once, one gets it.
    let same = join_all((0..20).map(async |n| {
        let app = if n % 2 == 0 { OURS } else { THEIRS };
        server.post(app, "/api/nodes/update?uuid=same").await.status
    }))
    .await;
    let count = |wanted: u16| same.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(403)), (10, 10), "{same:?}");
    let created = join_all((0..20).map(async |_| {
        server
            .post(OURS, "/api/nodes/update?uuid=fresh&node_type=db")
            .await
            .json()["status"]
            .to_string()
    }))
    .await;
    assert_eq!(
        created.iter().filter(|status| *status == "\"created\"").count(),
        1,
        "{created:?}"
    );
    assert_eq!(
        server.api.nodes().await.expect("the nodes").len(),
        known + MANY + 2
    );
    server.api.shutdown().await;
}

/// Serves in a process of its own, for [`a_kill_loses_nothing_that_was_answered`] to end.
#[tokio::test]
async fn serve_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let state = dstack_vpc::paths::StateDir::new(dir);
    let api = Api::start(settings(), &state).expect("the API");
    std::fs::write(state.root().join("addr"), api.local_addr().await.to_string()).expect("written");
    std::future::pending::<()>().await;
}

const CHILD: &str = "DSTACK_VPC_TEST_API_IN";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_that_was_answered() {
    let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let file = dir.path().join("addr");
    let mut answered = 0;
    for round in 0..3 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "durable::serve_until_killed"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a process");
        let _watchdog = Watchdog::over(child.id());
        let addr = poll(PATIENCE, async || {
            std::fs::read_to_string(&file).ok()?.parse().ok()
        });
        let addr = addr.await.expect("it serves");
        let announce = async |n: usize| {
            let path = format!("/api/nodes/update?uuid=n-{n:06}&node_type=db&hostname=n-{n}.dstack.internal");
            let request = post(&path, "").with("x-dstack-app-id", OURS);
            send(addr, request).await.is_ok_and(|reply| reply.status == 200)
        };
        // Killed in the middle of writing: some of a hundred more get no answer.
        let end = answered + 50;
        while answered < end {
            assert!(announce(answered).await, "{answered}");
            answered += 1;
        }
        let more = join_all((answered..answered + 100).map(announce));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(round * 5)).await;
            child.kill().expect("killed");
            child.wait().expect("gone")
        };
        let (more, _) = tokio::join!(more, kill);
        std::fs::remove_file(&file).expect("removed");

        let server = Server::again(Arc::clone(&dir), settings()).await;
        let rows = server.api.nodes().await.expect("the nodes");
        let ids: BTreeSet<_> = rows.iter().map(|row| row.id.to_string()).collect();
        let kept = |n: usize| ids.contains(&format!("n-{n:06}"));
        assert!((0..answered).all(kept), "{ids:?}");
        let lost: Vec<_> = (0..more.len())
            .filter(|n| more[*n] && !kept(answered + n))
            .collect();
        assert!(lost.is_empty(), "answered, but lost: {lost:?}");
        server.api.shutdown().await;
    }
}
