//! `mesh.https_listen`: who gets in, where a request goes, and what a backend is told.

use hyper::{Method, Request, Response, StatusCode};

use crate::fronts::*;
use crate::rendered::*;

on_both_fronts![
    host_selects_the_backend,
    without_a_certificate_of_ours_nothing_is_reached,
    a_host_in_the_request_line_is_the_host_for_everyone,
    the_name_in_the_handshake_changes_nothing,
    health_and_the_generation_need_no_certificate,
    what_we_vouch_for_cannot_be_sent_by_the_caller,
    no_upgrade_leads_past_the_check,
    without_a_default_backend_other_hosts_are_told_so_after_the_check,
    statuses_methods_and_repeated_headers_pass_as_they_are,
    tls_1_2_and_1_3_http_1_and_2_are_all_spoken,
];

/// A server with the backends `default`, `db` (its own Host) and `closed` (nobody may).
pub(crate) async fn three_backends(kind: Kind) -> Front {
    let (default, db, api) = (echo("default").await, echo("db").await, echo("api").await);
    Front::start(kind, |spec, _| {
        spec.role.server = true;
        spec.server.api_listen = api;
        spec.backends = vec![
            backend("default", "_", &[&default.to_string()]),
            backend("db", "db.internal", &[&db.to_string()]),
            backend("closed", "closed.internal", &[&db.to_string()]),
        ];
    })
    .await
}

pub(crate) fn served_by<B>(response: &Response<B>) -> &str {
    response.headers()["x-served-by"].to_str().unwrap()
}

async fn host_selects_the_backend(kind: Kind) {
    let front = three_backends(kind).await;
    for (host, expected) in [
        ("db.internal", "db"),
        ("DB.internal:443", "db"),
        ("db.internal.", "db"),
        ("vpc-server", "api"),
        ("anything.else", "default"),
        ("[::1]:443", "default"),
        ("aa-443s.apps.example.com", "default"),
    ] {
        let response = front.https(Who::App, get(host, "/a%20b?c=d%2Fe")).await;
        if (host, kind) == ("vpc-server", Kind::Builtin) {
            // It is in the process, and not here: see tests/api/front.rs.
            assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
            continue;
        }
        assert_eq!(response.status(), StatusCode::OK, "{host}");
        assert_eq!(served_by(&response), expected, "{host}");
        let text = text(response).await;
        assert!(text.starts_with("GET /a%20b?c=d%2Fe\n"), "{text}");
        assert!(text.contains(&format!("\nhost: {host}\n")), "{text}");
    }
}

async fn without_a_certificate_of_ours_nothing_is_reached(kind: Kind) {
    let front = three_backends(kind).await;
    for who in [Who::Nobody, Who::Stranger] {
        for host in ["db.internal", "vpc-server", "anything.else"] {
            let mut request = get(host, "/");
            // What the auth service is told comes from nginx alone.
            let headers = request.headers_mut();
            headers.insert("x-client-verify", "SUCCESS".parse().unwrap());
            headers.insert("x-dstack-app-id", app(CALLER).to_string().parse().unwrap());
            let response = front.https(who, request).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert!(!response.headers().contains_key("x-served-by"));
            assert_eq!(response.headers()["content-type"], "application/json");
            let body: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
            assert_eq!(body["code"], "unauthorized");
        }
    }
    let refused = front.https(Who::App, get("closed.internal", "/")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(text(refused).await.contains("\"code\":\"forbidden\""));
}

/// Backends may share an upstream that itself looks at Host: what was checked is what it has to see.
async fn a_host_in_the_request_line_is_the_host_for_everyone(kind: Kind) {
    let front = three_backends(kind).await;
    let request = get("closed.internal", "https://DB.internal/a%20b");
    let response = front.https(Who::App, request).await;
    assert_eq!(served_by(&response), "db");
    let text = text(response).await;
    assert!(text.starts_with("GET /a%20b\n"), "{text}");
    // nginx writes it in lower case.
    let text = text.to_ascii_lowercase();
    assert!(text.contains("\nhost: db.internal\n"), "{text}");
    assert!(text.contains("\nx-forwarded-host: db.internal\n"), "{text}");
    assert!(!text.contains("closed.internal"), "{text}");

    let request = get("db.internal", "https://closed.internal/");
    let refused = front.https(Who::App, request).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
}

/// A server without a TLS context of its own takes the default one's, with everything that is checked there.
async fn the_name_in_the_handshake_changes_nothing(kind: Kind) {
    let front = three_backends(kind).await;
    for sni in ["db.internal", "vpc-server", "closed.internal", "unknown.internal"] {
        for (who, status) in [(Who::Nobody, 401), (Who::Stranger, 401), (Who::App, 200)] {
            let stream = front
                .tls_named(who, rustls::ALL_VERSIONS, &[b"http/1.1"], sni)
                .await;
            let response = exchange(stream, get("db.internal", "/")).await;
            assert_eq!(response.status().as_u16(), status, "{sni}");
        }
    }
}

async fn health_and_the_generation_need_no_certificate(kind: Kind) {
    let front = three_backends(kind).await;
    for host in ["db.internal", "whatever"] {
        let health = front.https(Who::Nobody, get(host, "/health")).await;
        assert_eq!(health.status(), StatusCode::OK);
        assert_eq!(text(health).await, "OK");
        for response in [
            front
                .https(Who::Nobody, get(host, "/.dstack-vpc/generation"))
                .await,
            front.http(get(host, "/.dstack-vpc/generation")).await,
        ] {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["connection"], "close");
            assert_eq!(text(response).await, front.tag);
        }
    }
}

async fn what_we_vouch_for_cannot_be_sent_by_the_caller(kind: Kind) {
    let front = three_backends(kind).await;
    let http1 = front.https(Who::App, spoofed(get("db.internal", "/"))).await;
    let mut sender = http2(front.tls(Who::App, &[b"h2"]).await).await;
    let request = Request::get("https://db.internal/").body(body("")).unwrap();
    let http2 = sender.send_request(spoofed(request)).await.unwrap();
    for response in [http1, http2] {
        let seen = text(response).await;
        assert!(!seen.contains("spoofed"), "{seen}");
        let ids: Vec<_> = seen
            .lines()
            .filter(|l| l.to_lowercase().replace(['_', '.'], "-").starts_with("x-dstack"))
            .collect();
        assert_eq!(ids, [format!("x-dstack-app-id: {}", app(CALLER))]);
        for (name, told) in [
            ("for", "10.1.2.3, 127.0.0.1"),
            ("proto", "https"),
            ("host", "db.internal"),
        ] {
            let line = format!("\nx-forwarded-{name}: {told}\n");
            assert_eq!(
                seen.matches(&format!("\nx-forwarded-{name}: ")).count(),
                1,
                "{seen}"
            );
            assert!(seen.contains(&line), "{seen}");
        }
    }
}

/// Says of itself what only we say.
fn spoofed(mut request: Request<Body>) -> Request<Body> {
    for name in [
        "X-Dstack-App-Id",
        "x-dstack-app-id",
        "X_Dstack_App_Id",
        "x-dstack_app-id",
        "X-DSTACK-APP_ID",
        "x.dstack.app.id",
        "X-Client-Cert",
        "x-client-verify",
        "x_client_verify",
        "X-Dstack-Backend",
    ] {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, "spoofed".parse().unwrap());
    }
    let headers = request.headers_mut();
    headers.insert("x-forwarded-for", "10.1.2.3".parse().unwrap());
    for name in ["x-forwarded-proto", "x-forwarded-host"] {
        headers.insert(name, "spoofed".parse().unwrap());
    }
    request
}

/// Behind an upgrade to HTTP/2 in the clear, requests would pass that nginx never sees.
async fn no_upgrade_leads_past_the_check(kind: Kind) {
    let front = three_backends(kind).await;
    for upgrade in [
        "h2c",
        "H2C",
        "websocket, h2c",
        "h2c,websocket",
        "HTTP/2.0",
        "TLS/1.0",
    ] {
        let mut request = get("db.internal", "/");
        for (name, value) in [
            ("upgrade", upgrade),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let response = front.https(Who::App, request).await;
        assert_eq!(response.status(), StatusCode::OK, "{upgrade}");
        let seen = text(response).await;
        assert!(
            !seen.contains("\nupgrade:") && !seen.contains("\nconnection:"),
            "{seen}"
        );
    }
}

async fn without_a_default_backend_other_hosts_are_told_so_after_the_check(kind: Kind) {
    let db = echo("db").await;
    let front = Front::start(kind, |spec, _| {
        spec.backends = vec![backend("db", "db.internal", &[&db.to_string()])];
    })
    .await;
    let found = front.https(Who::App, get("db.internal", "/")).await;
    assert_eq!(served_by(&found), "db");
    let known = front.https(Who::App, get("other", "/")).await;
    assert_eq!(known.status(), StatusCode::MISDIRECTED_REQUEST);
    assert!(text(known).await.contains("\"code\":\"no_backend\""));
    let unknown = front.https(Who::Nobody, get("other", "/")).await;
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
}

async fn statuses_methods_and_repeated_headers_pass_as_they_are(kind: Kind) {
    let backend_addr = serve(|request: Request<_>| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        Response::builder()
            .status(status)
            .header("x-method", request.method().as_str())
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .body(body("from the backend"))
            .unwrap()
    })
    .await;
    let front = Front::start(kind, |spec, _| {
        spec.backends = vec![backend("default", "_", &[&backend_addr.to_string()])];
    })
    .await;
    // 401, 403 and 502 are also nginx's own: those of a backend keep their body.
    for status in [200, 204, 401, 403, 404, 418, 500, 502, 503, 504] {
        let response = front.https(Who::App, get("x", &format!("/{status}"))).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        let expected = if status == 204 { "" } else { "from the backend" };
        assert_eq!(text(response).await, expected, "{status}");
    }
    for method in ["HEAD", "OPTIONS", "PATCH", "PUT", "DELETE", "PROPFIND"] {
        let mut request = get("x", "/200");
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        let response = front.https(Who::App, request).await;
        assert_eq!(response.headers()["x-method"], method);
    }
}

async fn tls_1_2_and_1_3_http_1_and_2_are_all_spoken(kind: Kind) {
    let front = three_backends(kind).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // Whoever names no protocol means HTTP/1.1.
        for protocols in [&[&b"http/1.1"[..]][..], &[]] {
            let stream = front
                .tls_named(Who::App, &[version], protocols, "x.internal")
                .await;
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            let response = exchange(stream, get("db.internal", "/")).await;
            assert_eq!(served_by(&response), "db");
        }
    }
    let stream = front.tls(Who::App, &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2(stream).await;
    // Two Hosts on one connection: the second is not refused for the first's sake.
    for (host, expected) in [("db.internal", "db"), ("other.internal", "default")] {
        let request = Request::get(format!("https://{host}/x")).body(body("")).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(served_by(&response), expected);
        let seen = text(response).await;
        assert!(seen.contains(&format!("\nhost: {host}\n")), "{seen}");
        assert!(
            seen.contains(&format!("\nx-dstack-app-id: {}\n", app(CALLER))),
            "{seen}"
        );
    }
}
