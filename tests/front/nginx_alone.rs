//! What only nginx has: an auth service to ask, and a reload to announce.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{Request, Response, StatusCode};

use crate::fronts::*;
use crate::ingress::three_backends;
use crate::rendered::*;
use crate::streams::send;

#[tokio::test]
async fn the_auth_service_is_told_backend_and_certificate_and_nothing_of_the_callers() {
    let front = three_backends(Kind::Nginx).await;
    for (host, backend) in [
        ("db.internal", "db"),
        ("DB.internal:443", "db"),
        ("vpc-server", "vpc-server"),
        ("anything.else", "default"),
    ] {
        let mut request = get(host, "/");
        for name in [
            "X-Dstack-App-Id",
            "x_client_verify",
            "x-client-verify",
            "X-Client-Cert",
            "X-Dstack-Backend",
        ] {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, "spoofed".parse().unwrap());
        }
        assert_eq!(front.https(Who::App, request).await.status(), StatusCode::OK);
        let asked = front.asked.lock().unwrap().pop().unwrap();
        assert_eq!(asked["x-dstack-backend"], backend, "{host}");
        assert_eq!(asked["x-client-verify"], "SUCCESS");
        let cert = asked["x-client-cert"].to_str().unwrap();
        assert!(cert.starts_with("-----BEGIN%20CERTIFICATE-----%0A"), "{cert}");
        assert!(!asked.values().any(|value| value == "spoofed"), "{asked:?}");
    }
    for (who, verified) in [(Who::Nobody, "NONE"), (Who::Stranger, "FAILED")] {
        front.https(who, get("db.internal", "/")).await;
        let asked = front.asked.lock().unwrap().pop().unwrap();
        let said = asked["x-client-verify"].to_str().unwrap();
        assert!(said.starts_with(verified), "{said}");
    }
}

#[tokio::test]
async fn an_auth_service_that_is_away_is_said_in_json() {
    let upstream = echo("default").await.to_string();
    let front = Front::start_with_auth(Kind::Nginx, free_port(), Arc::default(), |spec, _| {
        spec.backends = vec![backend("default", "_", &[&upstream])];
    })
    .await;
    let response = front.https(Who::App, get("x", "/")).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text(response).await.contains("\"code\":\"auth_unavailable\""));
}

/// What the daemon says before a reload ends the client's connection, on either listener, and nobody else can say it.
#[tokio::test]
async fn a_farewell_ends_each_connection_with_its_next_answer() {
    let says = |who: &'static str| {
        move |request: Request<Incoming>| async move {
            let mut response = Response::new(body(""));
            if request.headers().get("x-farewell").is_some_and(|by| by == who) || who == "auth" {
                let last = "1".parse().unwrap();
                response.headers_mut().insert("x-dstack-last", last);
            }
            response
        }
    };
    let auth = serve(says("auth")).await;
    let upstream = serve(says("upstream")).await;
    let change = |spec: &mut dstack_vpc::spec::Spec, _: &mut dstack_vpc::facts::Facts| {
        spec.mesh.client_listen = upstream;
        spec.backends = vec![backend("default", "_", &[&upstream.to_string()])];
    };
    let leaving = Front::start_with_auth(Kind::Nginx, auth, Arc::default(), change).await;
    let staying = Front::start(Kind::Nginx, change).await;
    let ends = |response: Response<Incoming>| {
        assert!(!response.headers().contains_key("x-dstack-last"));
        let mut said = response.headers().get_all("connection").iter();
        said.any(|value| value == "close")
    };
    let call = |by: &str| {
        let mut request = get("x", "/");
        request.headers_mut().insert("x-farewell", by.parse().unwrap());
        request
    };
    for (front, tls, by, expected) in [
        (&staying, false, "upstream", true),
        (&staying, false, "nobody", false),
        (&staying, true, "upstream", false),
        (&leaving, true, "nobody", true),
    ] {
        assert_eq!(
            ends(send(front, tls, call(by)).await),
            expected,
            "tls: {tls}, {by}"
        );
    }
}
