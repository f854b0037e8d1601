//! Who may, what is whose, and how much of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dstack_vpc::spec::AllowedApps;

use crate::kit::*;
use crate::place::Place;

#[tokio::test]
async fn the_caller_is_named_once_and_rightly() {
    let server = Server::start().await;
    let asks = |headers: &str| {
        server.raw(format!(
            "GET /api/nodes HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n"
        ))
    };
    for wrong in [
        String::new(),
        "x-dstack-app-id:\r\n".to_owned(),
        format!("x-dstack-app-id: {}\r\n", &OURS[1..]),
        format!("x-dstack-app-id: {OURS}0\r\n"),
        format!("x-dstack-app-id: 0x{}\r\n", &OURS[2..]),
        format!("x-dstack-app-id: {OURS}, {OURS}\r\n"),
        format!("x-dstack-app-id: {OURS}\r\nX-Dstack-App-Id: {OURS}\r\n"),
        format!("x-dstack-app-id: {OURS}\r\nX-Dstack-App-Id: {NOBODY}\r\n"),
        format!("x-dstack-app-id: {OURS}\r\nX-Dstack-App-Id:\r\n"),
        format!("x_dstack_app_id: {OURS}\r\n"),
        "x-dstack-app-id: \u{e9}\r\n".to_owned(),
    ] {
        let reply = asks(&wrong).await;
        assert!(reply.starts_with("HTTP/1.1 401 "), "{wrong}: {reply}");
        assert!(reply.ends_with(r#"{"error":"Unauthorized"}"#), "{reply}");
    }
    for right in [OURS.to_owned(), OURS.to_uppercase(), format!("  {OURS}  ")] {
        let reply = asks(&format!("X-Dstack-App-Id: {right}\r\n")).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{right}: {reply}");
    }
}

#[tokio::test]
async fn allowed_apps_change_in_place_and_the_own_app_always_may() {
    let server = Server::with(|settings| settings.own_app = Some(app(NOBODY))).await;
    for (who, status) in [(OURS, 200), (NOBODY, 200)] {
        assert_eq!(server.get(who, "/api/nodes").await.status, status);
    }
    let mut changed = settings();
    changed.allowed_apps = AllowedApps::from_iter([app(NOBODY)]);
    server.api.update(changed.clone()).await.expect("updated");
    for (who, status) in [(OURS, 403), (NOBODY, 200)] {
        assert_eq!(server.get(who, "/api/nodes").await.status, status);
    }
    changed.allowed_apps = AllowedApps::Any;
    server.api.update(changed).await.expect("updated");
    assert_eq!(server.get(OURS, "/api/nodes").await.status, 200);
}

#[tokio::test]
async fn a_record_is_its_creators_and_nobody_else_gets_a_key_for_it() {
    let place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    server.announce(OURS, "n-1", "mongodb", "100.128.0.1").await;
    let keys = || place.cli(&["preauthkeys", "list"]).as_array().map_or(0, Vec::len);
    let before = (keys(), server.get(OURS, "/api/nodes").await.text());
    for reply in [
        server
            .post(THEIRS, "/api/nodes/update?uuid=n-1&tailscale_ip=100.128.0.66")
            .await,
        server.post(THEIRS, "/api/nodes/update?uuid=n-1").await,
        server.get(THEIRS, "/api/register?instance_id=n-1").await,
        server
            .get(THEIRS, "/api/register?instance_id=n-1&node_name=evil")
            .await,
    ] {
        assert_eq!(
            (reply.status, words(&reply).as_str()),
            (403, "node n-1 belongs to another app")
        );
        assert!(!reply.text().contains("key"), "{}", reply.text());
    }
    assert_eq!((keys(), server.get(OURS, "/api/nodes").await.text()), before);
    server.api.shutdown().await;
}

#[tokio::test]
async fn an_app_that_asks_too_much_is_told_when_to_come_again() {
    let server = Server::with(|settings| {
        settings.requests_per_hour = 5;
        settings.registrations_per_hour = 2;
    })
    .await;
    // Without Headscale they fail, and count all the same.
    for status in [503, 503, 429] {
        let reply = server.get(OURS, "/api/register?instance_id=a").await;
        assert_eq!(reply.status, status, "{}", reply.text());
        if status == 429 {
            assert!(
                words(&reply).starts_with("this app registered too many nodes: 2 an hour"),
                "{}",
                reply.text()
            );
            let seconds: u64 = reply.all("retry-after")[0].parse().expect("seconds");
            assert!((1700..=1800).contains(&seconds), "{seconds}");
        }
    }
    for status in [404, 404, 429] {
        let reply = server.get(OURS, "/api/discover/x").await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    // Others have their own, and health is for all.
    assert_eq!(server.get(THEIRS, "/api/nodes").await.status, 200);
    assert_eq!(server.get(OURS, "/health").await.status, 200);
    // What the API refuses is not counted against anybody.
    for _ in 0..20 {
        assert_eq!(server.get(NOBODY, "/api/nodes").await.status, 403);
    }
    // 0 is any number.
    server.api.update(settings()).await.expect("updated");
    for _ in 0..20 {
        assert_eq!(server.get(OURS, "/api/nodes").await.status, 200);
    }
}

#[tokio::test]
async fn what_is_away_is_said_and_the_rest_works() {
    let server = Server::with(|settings| settings.server_url = Err("the gateway is not known".into())).await;
    let status = server
        .until(|status| status.problems.iter().any(|p| p.contains("gateway")))
        .await;
    assert!(
        status
            .problems
            .contains(&"nodes cannot register: the gateway is not known".to_owned()),
        "{status:?}"
    );
    let reply = server.get(OURS, "/api/register?instance_id=a").await;
    assert_eq!(
        (reply.status, reply.all("retry-after")),
        (503, vec!["5".to_owned()])
    );
    assert!(
        words(&reply).contains("does not know its own address"),
        "{}",
        reply.text()
    );
    // No Headscale.
    server.api.update(settings()).await.expect("updated");
    let reply = server.get(OURS, "/api/register?instance_id=a").await;
    assert_eq!(reply.status, 503);
    assert!(
        words(&reply).starts_with("Failed to generate pre-auth key: Headscale"),
        "{}",
        reply.text()
    );
    server.announce(OURS, "n-1", "mongodb", "100.128.0.1").await;
    let status = server.until(|status| status.nodes == 2).await;
    assert_eq!(status.present, 2);
    tokio::time::timeout(Duration::from_secs(10), server.api.shutdown())
        .await
        .expect("an end");
}

/// Everything that is ever logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// In a process of its own: which messages are wanted is remembered for all of a process's threads.
#[test]
fn keys_are_given_to_nodes_and_to_no_log() {
    let output = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "callers::register_with_everything_logged"])
        .env(ALONE, "1")
        .output()
        .expect("a process");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

const ALONE: &str = "DSTACK_VPC_TEST_ALONE";

#[tokio::test]
async fn register_with_everything_logged() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let log = Log::default();
    let writer = log.clone();
    // One thread, so that it hears of every task.
    let _guard = tracing::subscriber::set_default(
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish(),
    );
    let place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    let given = server.get(OURS, "/api/register?instance_id=n-1").await.json();
    let refused = server.get(THEIRS, "/api/register?instance_id=n-1").await;
    assert_eq!(refused.status, 403);
    server.api.shutdown().await;
    let text = String::from_utf8(log.0.lock().expect("the log").clone()).expect("text");
    assert!(text.contains("a node registered"), "{text}");
    for name in ["pre_auth_key", "shared_key"] {
        let secret = given[name].as_str().expect("a secret");
        // What comes first in a key may be public: it is what Headscale names it by.
        assert!(
            !text.contains(&secret[secret.len() - 40..]),
            "{name} is in the log"
        );
    }
}
