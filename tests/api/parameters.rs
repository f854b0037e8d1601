//! Every parameter is what it should be, or a sentence says what it should have been.

use crate::kit::*;

const REGISTER: &str = "/api/register?";
const REGISTER_AS: &str = "/api/register?instance_id=n-1&";
const UPDATE: &str = "/api/nodes/update?uuid=n-1&";
const DISCOVER: &str = "/api/discover/t?";

#[tokio::test]
async fn what_is_wrong_is_named_quoted_and_explained() {
    let server = Server::start().await;
    let long = "a".repeat(65);
    for (start, name, given, expected) in [
        (REGISTER, "instance_id", "a b", "an instance id"),
        (REGISTER, "instance_id", &long, "an instance id"),
        (REGISTER, "instance_id", "../../etc/passwd", "an instance id"),
        (REGISTER, "instance_id", "-a", "an instance id"),
        (REGISTER, "instance_id", "<script>", "an instance id"),
        (REGISTER_AS, "node_name", "a.b", "a DNS label"),
        (REGISTER_AS, "node_name", "-a", "a DNS label"),
        (REGISTER_AS, "node_name", "a\n", "a DNS label"),
        (REGISTER_AS, "node_name", "ä", "a DNS label"),
        (REGISTER_AS, "node_type", "a/b", "a node type"),
        (UPDATE, "node_type", "a b", "a node type"),
        (UPDATE, "node_type", &long, "a node type"),
        (
            UPDATE,
            "tailscale_ip",
            "10.0.0.1",
            "an IPv4 address within 100.128.0.0/10",
        ),
        (
            UPDATE,
            "tailscale_ip",
            "100.64.0.1",
            "an IPv4 address within 100.128.0.0/10",
        ),
        (
            UPDATE,
            "tailscale_ip",
            "100.128.0.1/10",
            "an IPv4 address within 100.128.0.0/10",
        ),
        (
            UPDATE,
            "tailscale_ip",
            "fd7a::1",
            "an IPv4 address within 100.128.0.0/10",
        ),
        (
            UPDATE,
            "tailscale_ip",
            "0100.128.0.1",
            "an IPv4 address within 100.128.0.0/10",
        ),
        (UPDATE, "hostname", "a_b", "a DNS name"),
        (UPDATE, "hostname", "a..b", "a DNS name"),
        (UPDATE, "hostname", ".", "a DNS name"),
        (UPDATE, "hostname", "a.b..", "a DNS name"),
        (UPDATE, "name", "a b", "a DNS label"),
        (UPDATE, "silence", "0", "a time"),
        (UPDATE, "silence", "soon", "a time"),
        (UPDATE, "silence", "99999d", "a time"),
        (DISCOVER, "wait", "-1", "a time"),
        (DISCOVER, "wait", "1.5s", "a time"),
        (DISCOVER, "index", "-1", "a whole number"),
        (DISCOVER, "index", "18446744073709551616", "a whole number"),
    ] {
        let escaped = percent_encoding::utf8_percent_encode(given, percent_encoding::NON_ALPHANUMERIC);
        let path = format!("{start}{name}={escaped}");
        let reply = match start {
            UPDATE => server.post(OURS, &path).await,
            _ => server.get(OURS, &path).await,
        };
        assert_eq!(reply.status, 400, "{path}: {}", reply.text());
        let said = words(&reply);
        assert!(
            said.starts_with(&format!("{name} is {given:?}; expected {expected}")),
            "{path}: {said}"
        );
    }
    let nothing = server.api.nodes().await.expect("the nodes");
    assert_eq!(nothing, [], "nothing wrong left a trace");
}

#[tokio::test]
async fn broken_repeated_and_huge_ones_are_refused_too() {
    let server = Server::start().await;
    for (path, expected) in [
        (
            "/api/nodes/update?uuid=n-1&uuid=n-2".to_owned(),
            "uuid is given more than once; give it once",
        ),
        (
            "/api/nodes/update?uuid=n-1&uu%69d=n-1".to_owned(),
            "uuid is given more than once; give it once",
        ),
        (
            "/api/nodes/update?uuid=n-1&hostname=a&hostname=".to_owned(),
            "hostname is given more than once; give it once",
        ),
        (
            "/api/nodes/update?uuid=%zz".to_owned(),
            r#"uuid is "%zz"; expected percent-encoded UTF-8"#,
        ),
        (
            "/api/nodes/update?uuid=n-1&hostname=%ff".to_owned(),
            r#"hostname is "%ff"; expected percent-encoded UTF-8"#,
        ),
    ] {
        let reply = server.post(OURS, &path).await;
        assert_eq!((reply.status, words(&reply).as_str()), (400, expected), "{path}");
    }
    let reply = server.get(OURS, "/api/discover/a%20b").await;
    assert_eq!(reply.status, 400);
    assert!(
        words(&reply).starts_with(r#"node_type is "a b"; expected a node type"#),
        "{}",
        reply.text()
    );
    assert_eq!(server.get(OURS, "/api/discover/%ff").await.status, 400);

    let reply = server
        .post(OURS, &format!("/api/nodes/update?uuid={}", "a".repeat(20_000)))
        .await;
    assert_eq!(reply.status, 400);
    assert!(reply.body.len() < 300, "{}", reply.text());
    let reply = server
        .raw(format!(
            "GET /api/nodes?{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(100_000)
        ))
        .await;
    assert!(
        reply.starts_with("HTTP/1.1 431 ") || reply.starts_with("HTTP/1.1 414 "),
        "{reply}"
    );
}

#[tokio::test]
async fn what_nobody_knows_is_ignored_and_what_is_optional_counts() {
    let server = Server::start().await;
    let path =
        "/api/nodes/update?debug=1&debug=2&x=%zz&uuid=n-1&name=DB-1&silence=1&node_type=t&hostname=a.b";
    assert_eq!(server.post(OURS, path).await.status, 200);
    let row = server.api.nodes().await.expect("the nodes").remove(0);
    assert_eq!(row.name, "db-1");
    // Silent for a second, it is no longer discovered, but not forgotten.
    assert_eq!(server.get(OURS, "/api/discover/t").await.status, 200);
    let gone = crate::common::poll(PATIENCE, async || {
        (server.get(OURS, "/api/discover/t").await.status == 404).then_some(())
    });
    assert!(gone.await.is_some());
    let rows = server.api.nodes().await.expect("the nodes");
    assert_eq!((rows.len(), rows[0].present), (1, false));
    server
        .until(|status| (status.nodes, status.present) == (1, 0))
        .await;
}
