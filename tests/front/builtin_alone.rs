//! What only the built-in front has: it knows whether it has a certificate, passes trailers, and keeps little of what is
//! idle.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::fronts::*;
use crate::streams::{SOON, data, fed, front};

const BUILTIN: Kind = Kind::Builtin;

/// Without one no handshake succeeds, and nothing breaks; with one again, and on a connection from before, all is well.
#[tokio::test]
async fn without_a_certificate_of_ours_there_is_no_handshake_and_no_answer() {
    let front = front(BUILTIN, echo("default").await).await;
    let mut kept = http2(front.tls(Who::App, &[b"h2"]).await).await;
    let mut ask = async || {
        let request = Request::get("https://x/").body(body("")).unwrap();
        kept.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask().await, 200);
    front.forget_identity();
    let connecting = front.connect(Arc::new(client(None, rustls::ALL_VERSIONS, &[])), "x.internal");
    timeout(SOON, connecting)
        .await
        .expect("an end")
        .expect_err("no certificate");
    assert_eq!(ask().await, 503);
    let local = front.http(get("x", "/")).await;
    assert_eq!(local.status(), 502);
    assert!(text(local).await.contains("no_identity"));
    front.reload();
    assert_eq!(ask().await, 200);
    assert_eq!(front.https(Who::App, get("x", "/")).await.status(), 200);
}

/// nginx passes no trailers of a request on, and those of an answer over gRPC alone.
#[tokio::test]
async fn trailers_pass_both_ways_over_http_1_1() {
    let upstream = serve(|request: Request<Incoming>| async move {
        let collected = request.into_body().collect().await.unwrap();
        let told = collected.trailers().cloned().unwrap_or_default();
        let (feed, body) = fed();
        tokio::spawn(async move {
            feed.send(data("body")).await.unwrap();
            feed.send(Frame::trailers(told)).await.unwrap();
        });
        Response::builder()
            .header("trailer", "x-sum, x-dstack-app-id, x-client-verify")
            .body(body)
            .unwrap()
    })
    .await;
    let front = front(BUILTIN, upstream).await;
    let mut sender = http2(front.tls(Who::App, &[b"h2"]).await).await;
    let (feed, body) = fed();
    let trailers = [
        ("x-sum", "1"),
        ("x-dstack-app-id", "spoofed"),
        ("x-client-verify", "spoofed"),
        ("x_dstack_app_id", "spoofed"),
        ("host", "spoofed"),
    ];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let request = Request::post("https://x/")
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(body)
        .unwrap();
    let answer = sender.send_request(request);
    feed.send(data("body")).await.unwrap();
    feed.send(Frame::trailers(HeaderMap::from_iter(trailers)))
        .await
        .unwrap();
    drop(feed);
    let answer = timeout(SOON, answer).await.expect("an answer").unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    let told = collected.trailers().cloned().expect("trailers");
    assert_eq!(told["x-sum"], "1");
    assert_eq!(told.len(), 1, "{told:?}");
}

/// `CONNECT` is told that it is not served, whatever it names.
#[tokio::test]
async fn connect_is_refused_in_json() {
    let front = front(BUILTIN, echo("default").await).await;
    let mut stream = front.tls(Who::App, &[b"http/1.1"]).await;
    let request = b"CONNECT db.internal:443 HTTP/1.1\r\nhost: db.internal:443\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .expect("an end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("connect_not_served"), "{answer}");
    // Nothing came of it.
    drop(TcpStream::connect(front.https).await.unwrap());
}

/// What is idle sleeps. Whoever wakes it without asking for anything, as with new keys of TLS, has no more time than others.
#[tokio::test]
async fn whoever_only_wakes_a_connection_does_not_keep_it_open() {
    let front = Front::start(BUILTIN, |spec, _| {
        spec.limits.header_timeout = Duration::from_secs(4);
    })
    .await;
    let mut stream = front.tls(Who::App, &[b"http/1.1"]).await;
    let ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nOK") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{answer:?}");
    }
    let begun = Instant::now();
    loop {
        let closed = timeout(Duration::from_millis(1500), stream.read_u8()).await;
        if closed.is_ok() {
            break;
        }
        assert!(begun.elapsed() < SOON, "still open");
        // It may be closed by now.
        let _ = stream.get_mut().1.refresh_traffic_keys();
        let _ = stream.flush().await;
    }
    let open = begun.elapsed();
    assert!(open > Duration::from_secs(3), "{open:?}");
}
