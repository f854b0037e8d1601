//! HTTP/2 from end to end, as gRPC needs it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{Notify, mpsc};

use crate::kit::pki::{Shape, Signed, id};
use crate::kit::*;

type Body = BoxBody<Bytes, Infallible>;

async fn client(us: &OurSide) -> SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(us.client).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://grpc.internal{path}"))
        .header("x-dstack-target-app", them())
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

fn whole(text: &'static str) -> Body {
    Full::new(Bytes::from(text)).boxed()
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

#[tokio::test]
async fn it_comes_in_and_goes_out_on_one_connection() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let sender = client(&us).await;
    let calls = (0..50).map(|round| {
        let mut sender = sender.clone();
        async move {
            let response = sender
                .send_request(post(&format!("/m/{round}"), whole("body")))
                .await
                .unwrap();
            assert_eq!(response.status(), 200);
            let text = text(response).await;
            assert!(
                text.starts_with(&format!("POST https://grpc.internal/m/{round} HTTP/2.0\n")),
                "{text}"
            );
            assert!(
                text.contains("te: trailers") && text.ends_with("\n\nbody"),
                "{text}"
            );
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(peer.count(), 1);
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn both_directions_stream_at_once_and_end_in_trailers() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2"]);
    // Every frame comes back as it is, the trailers too.
    let peer = Peer::serve(acceptor, |request| async {
        Response::new(request.into_body().boxed())
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;

    let (frames, queue) = mpsc::unbounded_channel();
    let body = stream::unfold(queue, |mut queue| async {
        queue.recv().await.map(|frame| (Ok(frame), queue))
    });
    let mut sender = client(&us).await;
    let response = sender
        .send_request(post("/echo", StreamBody::new(body).boxed()))
        .await
        .unwrap();
    let mut back = response.into_body();
    for round in 0..10 {
        let message = Bytes::from(format!("message {round}"));
        frames.send(Frame::data(message.clone())).unwrap();
        assert_eq!(back.frame().await.unwrap().unwrap().into_data().unwrap(), message);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    frames.send(Frame::trailers(trailers.clone())).unwrap();
    drop(frames);
    assert_eq!(
        back.frame().await.unwrap().unwrap().into_trailers().unwrap(),
        trailers
    );
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn an_expectation_holds_nothing_up() {
    let root = Signed::root(&Shape::root());
    let peer = echo_head(&root).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut sender = client(&us).await;
    sender.send_request(post("/warm", whole("x"))).await.unwrap();
    let mut request = post("/", whole("body"));
    request
        .headers_mut()
        .insert("expect", HeaderValue::from_static("100-continue"));
    let begin = Instant::now();
    let text = text(sender.send_request(request).await.unwrap()).await;
    assert!(text.ends_with("\n\nbody"), "{text}");
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_peer_without_it_is_spoken_to_in_http1() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["http/1.1"]);
    let peer = Peer::serve(acceptor, |request: Request<Incoming>| async move {
        answer(format!(
            "{:?} {:?}",
            request.version(),
            request.headers().get("host")
        ))
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut sender = client(&us).await;
    for _ in 0..2 {
        let response = sender.send_request(post("/", whole("x"))).await.unwrap();
        assert_eq!(text(response).await, "HTTP/1.1 Some(\"grpc.internal\")");
    }
    us.mesh.shutdown().await;
}

/// Every connection says goodbye after its first answer: nothing fails, whatever the body.
#[tokio::test]
async fn goodbyes_are_followed_to_the_next_connection() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2"]);
    let peer = Peer::scripted(acceptor, |stream, _| async move {
        let answered = Arc::new(Notify::new());
        let saw = Arc::clone(&answered);
        let service = hyper::service::service_fn(move |_: Request<Incoming>| {
            saw.notify_one();
            async { Ok::<_, Infallible>(answer("ok")) }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = answered.notified() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut sender = client(&us).await;
    for round in 0..20 {
        let response = sender.send_request(post("/", whole("x"))).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), text(response).await.as_str()),
            (200, "ok"),
            "round {round}"
        );
        // With a pause the goodbye has arrived, without one it may be on its way.
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(peer.count() >= 10, "{}", peer.count());
    us.mesh.shutdown().await;
}

/// A peer's nginx says so before it reloads: then nothing is sent into the connection's end.
#[tokio::test]
async fn an_announced_end_is_not_waited_for() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2"]);
    let peer = Peer::serve(acceptor, |request: Request<Incoming>| async move {
        let mut answer = answer("ok");
        if request.uri().path() == "/last" {
            let last = HeaderValue::from_static("1");
            answer.headers_mut().insert("x-dstack-last", last);
        }
        answer
    })
    .await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut sender = client(&us).await;
    for (path, connections) in [("/", 1), ("/last", 1), ("/", 2), ("/", 2)] {
        let response = sender.send_request(post(path, whole("x"))).await.unwrap();
        assert!(!response.headers().contains_key("x-dstack-last"));
        assert_eq!(text(response).await, "ok");
        assert_eq!(peer.count(), connections, "{path}");
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn another_app_never_receives_a_byte_here_either() {
    let root = Signed::root(&Shape::root());
    let acceptor = Certificate::of(&root, id(0xbb)).acceptor(rustls::ALL_VERSIONS, &["h2"]);
    let peer = Peer::scripted(acceptor, |_, _| async {}).await;
    let us = OurSide::start(&root, settings(peer.gateway())).await;
    let mut sender = client(&us).await;
    let response = sender.send_request(post("/", whole("secret"))).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(text(response).await.contains("identity_mismatch"));
    assert_eq!(peer.count(), 0);
    us.mesh.shutdown().await;
}
