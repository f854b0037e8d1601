//! Through either front, from a client with a certificate: how peers reach it.

use std::collections::{BTreeMap, BTreeSet};

use dstack_vpc::mesh::{Mesh, MeshSettings};
use dstack_vpc::spec::{AllowedApps, Spec};
use hyper::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::fronts::{Body, CALLER, Front, Kind, Who, body, get, on_both_fronts, text};
use crate::kit::*;
use crate::rendered;

on_both_fronts![the_certificate_says_who_calls_and_nothing_else_does];

/// The auth service as the daemon runs it, for a server without other backends.
fn auth_service() -> Mesh {
    let patience = Duration::from_secs(10);
    let (_, nobody) = watch::channel(None);
    Mesh::start(
        MeshSettings {
            client_listen: "127.0.0.1:0".parse().expect("an address"),
            auth_listen: "127.0.0.1:0".parse().expect("an address"),
            front: None,
            gateway: None,
            agent: None,
            tcp_backends: BTreeMap::new(),
            forwards: BTreeMap::new(),
            only_ipv6: BTreeSet::new(),
            backends: BTreeMap::from([("vpc-server".parse().expect("a name"), AllowedApps::Any)]),
            connect_timeout: patience,
            response_timeout: patience,
            idle_timeout: patience,
            drain_timeout: patience,
            agent_timeout: patience,
            limits: Spec::default().limits,
            access_log: false,
        },
        nobody,
    )
    .expect("the mesh")
}

fn post(path: &str) -> hyper::Request<Body> {
    let mut request = get("vpc-server", path);
    *request.method_mut() = hyper::Method::POST;
    request
}

async fn the_certificate_says_who_calls_and_nothing_else_does(kind: Kind) {
    let caller = rendered::app(CALLER);
    let server = Server::with(|settings| settings.allowed_apps = AllowedApps::from_iter([caller])).await;
    let mesh = auth_service();
    let (api, auth) = (server.addr().await, mesh.local_addrs().await.auth.unwrap());
    let front = Front::start_with_auth(kind, auth, Arc::default(), |spec, _| {
        spec.role.server = true;
        spec.server.api_listen = api;
        spec.backends.clear();
    })
    .await;

    if let Some(mesh) = front.mesh() {
        // In the process the API is not connected to.
        mesh.publish(Some(server.api.inside()));
    }

    // A caller that names itself, in every spelling, is still who its certificate says.
    let mut spoofed = get("vpc-server", "/api/nodes");
    for name in [
        "X-Dstack-App-Id",
        "x_dstack_app_id",
        "X-Dstack_App-Id",
        "x.dstack.app.id",
    ] {
        let name: hyper::header::HeaderName = name.parse().expect("a name");
        spoofed
            .headers_mut()
            .append(name.clone(), NOBODY.parse().expect("a value"));
        spoofed
            .headers_mut()
            .append(name, THEIRS.parse().expect("a value"));
    }
    let mut update = post("/api/nodes/update?uuid=n-1&node_type=db&hostname=n-1.dstack.internal");
    update
        .headers_mut()
        .insert("x-dstack-app-id", NOBODY.parse().expect("a value"));
    for (request, expected) in [
        (update, r#"{"status":"created"}"#),
        (get("vpc-server", "/api/discover/db"), r#""uuid":"n-1""#),
        (spoofed, r#""uuid":"n-1""#),
        (get("vpc-server", "/api/ping"), "pong"),
    ] {
        let reply = front.https(Who::App, request).await;
        assert_eq!(reply.status(), StatusCode::OK);
        let text = text(reply).await;
        assert!(text.contains(expected), "{text}");
    }
    let rows = server.api.nodes().await.expect("the nodes");
    assert_eq!(rows.iter().map(|row| row.owner).collect::<Vec<_>>(), [caller]);

    // Long polling holds through it.
    let waiting = front.https(Who::App, get("vpc-server", "/api/discover/web?wait=50s"));
    let announce = async {
        let update = post("/api/nodes/update?uuid=n-2&node_type=web&hostname=n-2.dstack.internal");
        front.https(Who::App, update).await.status()
    };
    let (news, announced) = tokio::join!(waiting, announce);
    assert_eq!((news.status(), announced), (StatusCode::OK, StatusCode::OK));

    // Nothing here wants a body, and one that is too large is told so.
    let mut large = post("/api/nodes/update?uuid=n-3");
    *large.body_mut() = body(vec![b'x'; 80_000]);
    let refused = front.https(Who::App, large).await.status();
    // nginx may still be sending it when the API has had enough, and then it does not read the answer.
    let unheard = kind == Kind::Nginx && refused == StatusCode::BAD_GATEWAY;
    assert!(refused == StatusCode::PAYLOAD_TOO_LARGE || unheard, "{refused}");
    let mut small = post("/api/nodes/update?uuid=n-3");
    *small.body_mut() = body("not asked for");
    assert_eq!(front.https(Who::App, small).await.status(), StatusCode::OK);
    let mut head = get("vpc-server", "/api/register?instance_id=n-4");
    *head.method_mut() = hyper::Method::HEAD;
    let refused = front.https(Who::App, head).await;
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);

    for who in [Who::Nobody, Who::Stranger] {
        let mut request = get("vpc-server", "/api/nodes");
        request
            .headers_mut()
            .insert("x-dstack-app-id", caller.to_string().parse().expect("a value"));
        let refused = front.https(who, request).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }
    // No longer allowed: the front lets it through, the API does not, and says so in its own words.
    let mut closed = (*server.api.settings()).clone();
    closed.allowed_apps = AllowedApps::from_iter([app(OURS)]);
    server.api.update(closed).await.expect("updated");
    let refused = front.https(Who::App, get("vpc-server", "/api/nodes")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(text(refused).await, r#"{"error":"Forbidden"}"#);
    server.api.shutdown().await;
    let gone = front.https(Who::App, get("vpc-server", "/api/ping")).await;
    assert_eq!(gone.status(), StatusCode::BAD_GATEWAY);
    assert!(text(gone).await.contains("\"backend_unreachable\""));
    mesh.shutdown().await;
}
