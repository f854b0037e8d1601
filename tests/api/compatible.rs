//! Answers byte for byte, as clients of the API's first implementation know them.

use hyper::Method;

use crate::common::http::Reply;
use crate::kit::*;
use crate::place::Place;

const JSON: &str = "application/json; charset=utf-8";

#[tokio::test]
async fn a_node_comes_and_is_found() {
    let server = Server::start().await;
    for (path, status, expected) in [
        ("/api/nodes", 200, r#"{"count":0,"nodes":[]}"#),
        (
            "/api/discover/mongodb",
            404,
            r#"{"error":"No mongodb nodes found"}"#,
        ),
        ("/api/discover/etcd", 404, r#"{"error":"No etcd nodes found"}"#),
    ] {
        let reply = server.get(OURS, path).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, expected));
        assert_eq!(reply.all("content-type"), [JSON]);
    }
    for (query, expected) in [
        (
            "uuid=n-1&node_type=mongodb&tailscale_ip=100.128.0.7&hostname=db-1.dstack.internal",
            "created",
        ),
        (
            "uuid=n-1&node_type=mongodb&tailscale_ip=100.128.0.7&hostname=db-1.dstack.internal",
            "updated",
        ),
        ("uuid=n-1&node_type=&tailscale_ip=&hostname=", "updated"),
        (
            "uuid=n-0&node_type=mongodb&hostname=DB-0.dstack.internal.",
            "created",
        ),
        // Without a host name it is not discovered.
        ("uuid=n-2&node_type=mongodb&tailscale_ip=100.128.0.9", "created"),
        ("uuid=n-3", "created"),
    ] {
        let reply = server.post(OURS, &format!("/api/nodes/update?{query}")).await;
        assert_eq!(reply.text(), format!(r#"{{"status":"{expected}"}}"#), "{query}");
        assert_eq!(
            (reply.status, reply.all("content-type")),
            (200, vec![JSON.to_owned()])
        );
    }
    let found = server.get(THEIRS, "/api/discover/mongodb").await;
    assert_eq!(
        without_index(&found),
        concat!(
            r#"{"count":2,"node_type":"mongodb","nodes":["#,
            r#"{"hostname":"db-0.dstack.internal","tailscale_ip":null,"uuid":"n-0"},"#,
            r#"{"hostname":"db-1.dstack.internal","tailscale_ip":"100.128.0.7","uuid":"n-1"}]}"#
        )
    );
    assert_eq!(
        (found.status, found.all("content-type")),
        (200, vec![JSON.to_owned()])
    );
    assert_eq!(
        server.get(THEIRS, "/api/nodes").await.text(),
        concat!(
            r#"{"count":4,"nodes":["#,
            r#"{"uuid":"n-0","name":"n-0","node_type":"mongodb","tailscale_ip":null,"actual_hostname":"db-0.dstack.internal"},"#,
            r#"{"uuid":"n-1","name":"n-1","node_type":"mongodb","tailscale_ip":"100.128.0.7","actual_hostname":"db-1.dstack.internal"},"#,
            r#"{"uuid":"n-2","name":"n-2","node_type":"mongodb","tailscale_ip":"100.128.0.9","actual_hostname":null},"#,
            r#"{"uuid":"n-3","name":"n-3","node_type":"","tailscale_ip":null,"actual_hostname":null}]}"#
        )
    );
}

#[tokio::test]
async fn of_etcd_the_newest_is_told_with_its_port() {
    let server = Server::start().await;
    server.announce(OURS, "e-1", "etcd", "100.128.0.1").await;
    server.announce(OURS, "e-2", "etcd", "100.128.0.2").await;
    // A heartbeat of the older one makes it no newer.
    server.announce(OURS, "e-1", "etcd", "100.128.0.1").await;
    assert_eq!(
        without_index(&server.get(OURS, "/api/discover/etcd").await),
        concat!(
            r#"{"count":1,"node_type":"etcd","nodes":[{"hostname":"e-2.dstack.internal","#,
            r#""hostname_with_port":"e-2.dstack.internal:2379","tailscale_ip":"100.128.0.2","uuid":"e-2"}]}"#
        )
    );
}

/// The one field that the API's first implementation did not have.
fn without_index(found: &Reply) -> String {
    let index = found.json()["index"].as_u64().expect("an index");
    found.text().replacen(&format!(r#""index":{index},"#), "", 1)
}

#[tokio::test]
async fn refusals_have_the_words_that_clients_know() {
    let server = Server::start().await;
    for (method, app, path, status, expected) in [
        (
            Method::GET,
            "junk",
            "/api/nodes",
            401,
            r#"{"error":"Unauthorized"}"#,
        ),
        (Method::GET, NOBODY, "/api/nodes", 403, r#"{"error":"Forbidden"}"#),
        (
            Method::GET,
            NOBODY,
            "/api/register?instance_id=a",
            403,
            r#"{"error":"Forbidden"}"#,
        ),
        (
            Method::GET,
            OURS,
            "/api/register",
            400,
            r#"{"error":"Missing required parameters"}"#,
        ),
        (
            Method::GET,
            OURS,
            "/api/register?instance_id=&node_name=a",
            400,
            r#"{"error":"Missing required parameters"}"#,
        ),
        (
            Method::POST,
            OURS,
            "/api/nodes/update",
            400,
            r#"{"error":"uuid parameter is required"}"#,
        ),
        (
            Method::POST,
            OURS,
            "/api/nodes/update?uuid=",
            400,
            r#"{"error":"uuid parameter is required"}"#,
        ),
    ] {
        let reply = server.send(method, app, path).await;
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (status, expected),
            "{path}"
        );
        assert_eq!(reply.all("content-type"), [JSON]);
    }
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/api", 404),
        (Method::GET, "/api/discover/", 404),
        (Method::GET, "/api/discover/a/b", 404),
        (Method::GET, "/api/nodes/update?uuid=a", 405),
        (Method::POST, "/api/nodes", 405),
        (Method::DELETE, "/health", 405),
    ] {
        let reply = server.send(method, OURS, path).await;
        assert_eq!(reply.status, status, "{path}");
        assert!(words(&reply).contains("/api/openapi.json"), "{}", reply.text());
        assert_eq!(reply.all("content-type"), [JSON]);
    }
}

#[tokio::test]
async fn a_head_registers_nobody() {
    let server = Server::start().await;
    let reply = server
        .send(Method::HEAD, OURS, "/api/register?instance_id=n-1")
        .await;
    assert_eq!(reply.status, 405);
    assert_eq!(server.get(OURS, "/api/nodes").await.json()["count"], 0);
}

#[tokio::test]
async fn health_and_ping_are_for_everybody() {
    let server = Server::start().await;
    for (path, word) in [("/health", "OK"), ("/api/ping", "pong")] {
        let reply = server
            .raw(format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(
            reply.contains("content-type: text/plain; charset=utf-8\r\n"),
            "{reply}"
        );
        assert!(reply.ends_with(&format!("\r\n\r\n{word}")), "{reply}");
    }
    let head = server
        .raw("HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn a_registration_hands_out_what_a_node_needs() {
    let place = Place::running().await;
    let server = Server::with_headscale(&place).await;
    let mut keys = std::collections::BTreeSet::new();
    for query in [
        "instance_id=n-1&node_name=DB-1&node_type=mongodb",
        "instance_id=n-1",
        "instance_id=n-2",
    ] {
        let reply = server.get(OURS, &format!("/api/register?{query}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.all("content-type"), [JSON]);
        let given = reply.json();
        let text = |name: &str| given[name].as_str().expect("a text").to_owned();
        let (key, shared) = (text("pre_auth_key"), text("shared_key"));
        assert_eq!(
            reply.text(),
            format!(
                r#"{{"pre_auth_key":"{key}","shared_key":"{shared}","server_url":"https://vpn.example.com:8443"}}"#
            )
        );
        assert_eq!((shared.len(), &shared[86..]), (88, "=="), "64 bytes in base64");
        keys.insert(key);
    }
    assert_eq!(keys.len(), 3, "each registration has a key of its own");
    // Headscale knows them for what the settings say: one use, an hour.
    let known = place.cli(&["preauthkeys", "list"]);
    assert!(known.as_array().is_some_and(|all| all.len() >= 3), "{known}");
    assert!(
        known
            .as_array()
            .into_iter()
            .flatten()
            .all(|key| key["reusable"] != true),
        "{known}"
    );
    let rows = server.api.nodes().await.expect("the nodes");
    let row = |id: &str| rows.iter().find(|row| row.id.as_str() == id).expect("the node");
    // Registering again without a name or a type took nothing away.
    assert_eq!(row("n-1").name, "db-1");
    assert_eq!(row("n-1").node_type.as_ref().map(|t| t.as_str()), Some("mongodb"));
    assert_eq!(row("n-2").name, "node-n-2");
    assert_eq!(row("n-2").owner, app(OURS));
    assert!(row("n-2").present);
    server.api.shutdown().await;
}
