//! What an app sees that calls another through the mesh.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Method, Request};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::common::http::{self, Reply, With, get, post, request};
use crate::common::pair::{DOWN, Pair, REPORTS};
use crate::common::tls::Caller;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP, run};

#[test]
fn a_call_reaches_the_backend_with_the_callers_app_id() {
    run(async {
        let pair = Pair::shared().await;
        let reply = pair.call(get("/hello?a=1&b=%2F")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let seen = reply.json();
        assert_eq!(seen["backend"], "default");
        assert_eq!(seen["path"], "/hello");
        assert_eq!(header(&seen, "x-dstack-app-id"), [CLIENT_APP]);
        assert!(pair.default.seen().contains(&"GET /hello?a=1&b=%2F".to_owned()));
    });
}

#[test]
fn headers_for_the_proxy_stay_with_the_proxy() {
    run(async {
        let pair = Pair::shared().await;
        let call = get("/headers")
            .with("x-dstack-target-port", "443")
            .with("x-kept", "yes");
        let seen = pair.call(call).await.json();
        assert_eq!(header(&seen, "x-kept"), ["yes"]);
        assert_eq!(header(&seen, "host"), ["app.local"]);
        let names: Vec<_> = seen["headers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|h| h[0].to_string())
            .collect();
        assert!(!names.is_empty());
        assert!(
            !names.iter().any(|name| name.contains("x-dstack-target")),
            "{names:?}"
        );
        assert!(!names.iter().any(|name| name.contains("x-client-")), "{names:?}");
    });
}

#[test]
fn another_app_than_was_asked_for_gets_nothing() {
    run(async {
        let pair = Pair::shared().await;
        let call = post("/secret-of-the-wrong-app", "body").to_app(OTHER_APP);
        let reply = pair.client.call(call).await.unwrap();
        assert_eq!(reply.status, 502);
        assert_eq!(reply.json()["code"], "identity_mismatch", "{}", reply.text());
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(OTHER_APP) && error.contains(SERVER_APP), "{error}");
        let came = pair
            .default
            .seen()
            .into_iter()
            .filter(|line| line.contains("secret-of-the-wrong-app"));
        assert_eq!(came.count(), 0);
    });
}

#[test]
fn a_target_that_is_not_an_app_id_is_refused() {
    run(async {
        let pair = Pair::shared().await;
        for target in [
            "127.0.0.1:18443/injected?",
            "",
            "c11e",
            "../../etc",
            &format!("{SERVER_APP}0"),
        ] {
            let reply = pair.client.call(get("/injected").to_app(target)).await.unwrap();
            assert_eq!(reply.status, 400, "{target:?}: {}", reply.text());
            assert_eq!(reply.json()["code"], "bad_target", "{target:?}");
        }
        assert!(!pair.default.seen().iter().any(|line| line.contains("injected")));
    });
}

#[test]
fn the_host_selects_the_backend() {
    run(async {
        let pair = Pair::shared().await;
        for (host, backend) in [
            (REPORTS, "reports"),
            ("Reports.Local:8443", "reports"),
            ("other.local", "default"),
        ] {
            let reply = pair.call(get("/by-host").with("host", host)).await;
            assert_eq!(
                reply.json()["backend"],
                backend,
                "{host}: {} {}",
                reply.status,
                reply.text()
            );
        }
    });
}

#[test]
fn an_upstream_that_is_down_is_a_502() {
    run(async {
        let pair = Pair::shared().await;
        let reply = pair.call(get("/").with("host", DOWN)).await;
        assert_eq!(reply.status, 502, "{}", reply.text());
        let after = pair.call(get("/after-a-502")).await;
        assert_eq!(after.status, 200);
    });
}

#[test]
fn every_method_passes_as_it_is() {
    run(async {
        let pair = Pair::shared().await;
        for name in ["HEAD", "OPTIONS", "PATCH", "PUT", "DELETE", "PROPFIND"] {
            let method = Method::from_bytes(name.as_bytes()).unwrap();
            let reply = pair
                .call(request(method, &format!("/method-{name}"), Empty::<Bytes>::new()))
                .await;
            assert_eq!(reply.status, 200, "{name}");
            assert!(
                pair.default.seen().contains(&format!("{name} /method-{name}")),
                "{name}"
            );
            assert_eq!(reply.body.is_empty(), name == "HEAD", "{name}");
        }
        // A body where few expect one must not run into the next request.
        let body = Full::new(Bytes::from_static(b"12345"));
        let reply = pair.call(request(Method::DELETE, "/with-a-body", body)).await;
        assert_eq!(reply.json()["bytes"], 5);
        assert_eq!(pair.call(get("/after-a-body")).await.status, 200);
    });
}

#[test]
fn statuses_stay_what_they_are() {
    run(async {
        let pair = Pair::shared().await;
        for status in [201, 204, 301, 401, 403, 404, 418, 429, 500, 503] {
            let reply = pair.call(get(&format!("/status/{status}"))).await;
            assert_eq!(reply.status, status);
            if status != 204 {
                assert_eq!(reply.text(), format!("status {status}\n"));
            }
        }
    });
}

#[test]
fn two_cookies_stay_two() {
    run(async {
        let pair = Pair::shared().await;
        let reply = pair.call(get("/cookies")).await;
        assert_eq!(reply.all("set-cookie"), ["a=1; Path=/", "b=2; Path=/"]);
    });
}

#[test]
fn grpc_passes_with_its_trailers() {
    run(async {
        let pair = Pair::shared().await;
        // gRPC clients speak HTTP/2 to the proxy itself; nginx in front of it is for plain HTTP.
        let proxy = TcpStream::connect(pair.client.ports.client.addr()).await.unwrap();
        let reply = http::send_h2(proxy, grpc().to_app(SERVER_APP)).await.unwrap();
        assert_grpc(&reply);
    });
}

#[test]
fn grpc_and_plain_calls_use_connections_of_their_own() {
    run(async {
        let pair = Pair::shared().await;
        let https = pair.server.ports.https.addr();
        for _ in 0..20 {
            // On new connections, so that every worker of nginx gets some of both kinds.
            let plain = pair
                .server
                .call_as_peer(Some(pair.agent.issue(CLIENT_APP)), get("/among-grpc"));
            assert_eq!(plain.await.unwrap().status, 200);
            let caller = Caller {
                h2: true,
                ..Caller::with(pair.agent.issue(CLIENT_APP))
            };
            assert_grpc(
                &http::send_h2(caller.connect(https).await.unwrap(), grpc())
                    .await
                    .unwrap(),
            );
        }
    });
}

fn grpc() -> Request<Full<Bytes>> {
    let mut call = post("/trailers", "message")
        .with("content-type", "application/grpc")
        .with("te", "trailers");
    *call.uri_mut() = "http://app.local/trailers".parse().unwrap();
    call
}

fn assert_grpc(reply: &Reply) {
    assert_eq!((reply.status, reply.text().as_str()), (200, "message"));
    let trailers = reply.trailers.as_ref().expect("trailers");
    assert_eq!(trailers.get("grpc-status").unwrap(), "0");
}

#[test]
fn websockets_echo() {
    run(async {
        let pair = Pair::shared().await;
        let mut request = "ws://app.local/ws".into_client_request().unwrap();
        let target = SERVER_APP.parse().unwrap();
        request.headers_mut().insert("x-dstack-target-app", target);
        let stream = pair.client.connect().await;
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.status(), 101);
        for message in [
            Message::text("hello"),
            Message::binary(vec![7; 100_000]),
            Message::text("again"),
        ] {
            socket.send(message.clone()).await.unwrap();
            let echo = tokio::time::timeout(Duration::from_secs(10), socket.next())
                .await
                .unwrap();
            assert_eq!(echo.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
    });
}

#[test]
fn what_is_sent_first_arrives_first() {
    run(async {
        let pair = Pair::shared().await;
        let stream = pair.client.connect().await;
        let response = http::open(stream, get("/hold").to_app(SERVER_APP)).await.unwrap();
        let mut body = response.into_body();
        let first = tokio::time::timeout(Duration::from_secs(10), body.frame()).await;
        let first = first
            .expect("nobody waits for the end of the body")
            .unwrap()
            .unwrap();
        assert_eq!(first.into_data().unwrap(), "first,");
        pair.default.release();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "last");
    });
}

#[test]
fn without_a_target_the_guest_agent_answers() {
    run(async {
        let pair = Pair::shared().await;
        let info = pair.client.call(get("/info")).await.unwrap();
        assert_eq!(
            info.json()["app_id"],
            CLIENT_APP,
            "{} {}",
            info.status,
            info.text()
        );
        let gateway = pair.client.call(get("/gateway")).await.unwrap();
        let expected = format!("fixed/{}", pair.server.ports.https);
        assert_eq!(gateway.json()["gateway_domain"], expected);
        let wrong = pair.client.call(get("/no_such_method")).await.unwrap();
        assert!(
            (400..500).contains(&wrong.status),
            "{} {}",
            wrong.status,
            wrong.text()
        );
        assert_eq!(pair.client.call(get("/health")).await.unwrap().status, 200);
    });
}

/// The values of one header that a backend saw.
pub(crate) fn header<'a>(seen: &'a serde_json::Value, name: &str) -> Vec<&'a str> {
    let headers = seen["headers"].as_array().into_iter().flatten();
    headers
        .filter(|header| header[0] == name)
        .filter_map(|header| header[1].as_str())
        .collect()
}
