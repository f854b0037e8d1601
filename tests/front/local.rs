//! `mesh.http_listen`: files for local apps, and the way to the outbound proxy.

use std::os::unix::fs::symlink;

use hyper::{Method, StatusCode};

use crate::fronts::*;
use crate::rendered::*;
use crate::streams::front;

on_both_fronts![
    local_apps_get_the_seven_files_and_the_proxy_gets_the_rest,
    an_ipv6_wildcard_takes_both_kinds_unless_ipv4_is_taken,
];

async fn local_apps_get_the_seven_files_and_the_proxy_gets_the_rest(kind: Kind) {
    let front = front(kind, echo("proxy").await).await;
    let vpc = front.state.vpc();
    let served = [
        "shared_key",
        "server_url",
        "tailscale_ip",
        "actual_hostname",
        "tailscale_status.json",
        "instance_id",
        "vpc_server_app_id",
    ];
    for name in served.iter().chain(&[
        "pre_auth_key",
        "shared_keyx",
        "xshared_key",
        "tailscale_statusxjson",
    ]) {
        std::fs::write(vpc.join(name), format!("content of {name}")).unwrap();
    }
    for name in served {
        let response = front.http(get("x", &format!("/vpc/0/{name}"))).await;
        assert_eq!(response.status(), StatusCode::OK, "{name}");
        let kind = if name.ends_with(".json") {
            "application/json"
        } else {
            "text/plain"
        };
        assert_eq!(response.headers()["content-type"], kind);
        assert_eq!(text(response).await, format!("content of {name}"));
    }
    for name in [
        "",
        "pre_auth_key",
        "shared_keyx",
        "xshared_key",
        "tailscale_statusxjson",
        "../../identity/000001/key.pem",
        "..%2f..%2fidentity/000001/key.pem",
        "shared_key/",
        "shared_key/../../../identity/000001/key.pem",
        "/../../identity/000001/key.pem",
        "%2e%2e/%2e%2e/identity/000001/key.pem",
        "..\\..\\identity",
        "shared_key%00",
        "%252e%252e/%252e%252e/identity/000001/key.pem",
        "..%252f..%252fidentity/000001/key.pem",
        "..%5c..%5cidentity%5c000001%5ckey.pem",
        "%c0%ae%c0%ae/%c0%ae%c0%ae/identity/000001/key.pem",
        "shared_key%2500",
    ] {
        let response = front.http(get("x", &format!("/vpc/0/{name}"))).await;
        let proxied = response.headers().contains_key("x-served-by");
        // For nginx a path that leads out of /vpc/0/ is the proxy's, which sees it as it was sent.
        let leads_out = kind == Kind::Nginx && ["../", "..%2f", "%2e%2e/"].iter().any(|up| name.contains(up));
        assert!(
            proxied == leads_out && (proxied || [400, 404].contains(&response.status().as_u16())),
            "{name}: {}",
            response.status()
        );
        assert!(!text(response).await.contains("PRIVATE KEY"), "{name}");
    }
    for (method, expected) in [("HEAD", 200), ("POST", 405), ("PUT", 405), ("DELETE", 405)] {
        let mut request = get("x", "/vpc/0/shared_key");
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(front.http(request).await.status(), expected, "{method}");
    }
    // A folder is no file, and nothing is got by a link.
    std::fs::remove_file(vpc.join("server_url")).unwrap();
    std::fs::create_dir(vpc.join("server_url")).unwrap();
    let folder = front.http(get("x", "/vpc/0/server_url")).await.status();
    assert!(!folder.is_success(), "{folder}");
    std::fs::remove_file(vpc.join("instance_id")).unwrap();
    symlink(
        front.state.identity().join("000001/key.pem"),
        vpc.join("instance_id"),
    )
    .unwrap();
    let link = front.http(get("x", "/vpc/0/instance_id")).await;
    assert_eq!(link.status(), 403);
    assert!(!text(link).await.contains("PRIVATE KEY"));
    for ours in [vpc.clone(), vpc.parent().unwrap().to_owned()] {
        let away = front.state.root().join("away");
        std::fs::rename(&ours, &away).unwrap();
        symlink(&away, &ours).unwrap();
        let linked = front.http(get("x", "/vpc/0/shared_key")).await.status();
        assert!(
            [403, 404].contains(&linked.as_u16()),
            "{}: {linked}",
            ours.display()
        );
        std::fs::remove_file(&ours).unwrap();
        std::fs::rename(&away, &ours).unwrap();
    }
    let gone = front.state.vpc().join("shared_key");
    std::fs::remove_file(gone).unwrap();
    assert_eq!(front.http(get("x", "/vpc/0/shared_key")).await.status(), 404);

    for path in ["/", "/vpc", "/vpc/1/shared_key", "/vpc/00/shared_key", "/a?b=%20"] {
        let mut request = get("peer.internal:1", path);
        let target = app(7).to_string();
        request
            .headers_mut()
            .insert("x-dstack-target-app", target.parse().unwrap());
        let seen = text(front.http(request).await).await;
        assert!(seen.starts_with(&format!("GET {path}\n")), "{seen}");
        assert!(seen.contains("\nhost: peer.internal:1\n"), "{seen}");
        // The built-in front is the proxy, and calls itself.
        let told = match kind {
            Kind::Nginx => format!("\nx-dstack-target-app: {target}\n"),
            Kind::Builtin => format!("\nx-dstack-app-id: {}\n", app(SELF)),
        };
        assert!(seen.contains(&told), "{seen}");
    }
}

async fn an_ipv6_wildcard_takes_both_kinds_unless_ipv4_is_taken(kind: Kind) {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        eprintln!("this machine has no IPv6: nothing to see");
        return;
    }
    let proxy = echo("proxy").await;
    let wildcard = |port: u16| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    for taken in [false, true] {
        let front = Front::start(kind, |spec, _| {
            spec.mesh.client_listen = proxy;
            // Stands for any listener of ours: the built-in front is the proxy itself.
            spec.metrics.listen = taken.then_some(proxy);
            // A port that is ours on IPv4 must stay so.
            let port = if taken { proxy } else { spec.mesh.http_listen }.port();
            spec.mesh.http_listen = wildcard(port);
        })
        .await;
        let port = if taken { proxy } else { front.http }.port();
        let over = async |host: &str| {
            let stream = tokio::net::TcpStream::connect(format!("{host}:{port}"))
                .await
                .unwrap();
            text(exchange(stream, get("x", "/.dstack-vpc/generation")).await).await
        };
        assert_eq!(over("[::1]").await, front.tag, "taken: {taken}");
        assert_eq!(over("127.0.0.1").await == front.tag, !taken, "taken: {taken}");
    }
}
