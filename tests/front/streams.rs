//! What flows through a front: nothing is held back, cut off or written to disk, on either listener.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::fronts::*;
use crate::rendered::*;

on_both_fronts![
    an_upgrade_becomes_a_pipe_in_both_directions,
    each_event_arrives_before_the_next_is_sent,
    an_upload_reaches_the_backend_while_it_is_being_sent,
    a_large_body_passes_up_and_down_and_never_touches_the_disk,
    grpc_streams_both_ways_with_its_trailers_under_the_same_check,
    a_connection_that_was_idle_goes_on_where_it_was,
    a_client_that_expects_a_100_gets_one_before_its_body,
    a_handshake_that_takes_too_long_is_cut,
    headers_for_nginx_do_nothing,
];

/// Long enough for a slow machine, far shorter than any time limit in nginx.conf.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A body that the test feeds frame by frame.
pub(crate) fn fed() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok::<_, hyper::Error>);
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

pub(crate) fn data(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

pub(crate) async fn next_data(body: &mut Incoming) -> Bytes {
    let frame = tokio::time::timeout(SOON, body.frame()).await.expect("held back");
    frame.unwrap().unwrap().into_data().unwrap()
}

/// A front with `upstream` behind both listeners.
pub(crate) async fn front(kind: Kind, upstream: std::net::SocketAddr) -> Front {
    Front::start(kind, |spec, _| {
        spec.mesh.client_listen = upstream;
        spec.backends = vec![backend("default", "_", &[&upstream.to_string()])];
    })
    .await
}

/// Through one listener or the other.
pub(crate) async fn send(front: &Front, tls: bool, request: Request<Body>) -> Response<Incoming> {
    match tls {
        true => front.https(Who::App, request).await,
        false => front.http(request).await,
    }
}

async fn an_upgrade_becomes_a_pipe_in_both_directions(kind: Kind) {
    let upstream = serve(|mut request: Request<Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        assert_eq!(request.headers()["connection"], "upgrade");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 4];
            while io.read_exact(&mut buffer).await.is_ok() {
                buffer.reverse();
                io.write_all(&buffer).await.unwrap();
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(body(""))
            .unwrap()
    })
    .await;
    let front = front(kind, upstream).await;
    for tls in [false, true] {
        let mut request = get("x", "/socket");
        request
            .headers_mut()
            .insert("connection", "Upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "websocket".parse().unwrap());
        let response = send(&front, tls, request).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "tls: {tls}");
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        for (said, heard) in [(b"abcd", b"dcba"), (b"1234", b"4321")] {
            io.write_all(said).await.unwrap();
            let mut buffer = [0; 4];
            tokio::time::timeout(SOON, io.read_exact(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&buffer, heard);
        }
    }
}

async fn each_event_arrives_before_the_next_is_sent(kind: Kind) {
    let sender: Arc<Mutex<Option<mpsc::Sender<Frame<Bytes>>>>> = Arc::default();
    let shared = sender.clone();
    let upstream = serve(move |_| {
        let (feed, body) = fed();
        *shared.lock().unwrap() = Some(feed);
        async move {
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(body)
                .unwrap()
        }
    })
    .await;
    let front = front(kind, upstream).await;
    for tls in [false, true] {
        let mut response = send(&front, tls, get("x", "/events")).await;
        let feed = sender.lock().unwrap().take().unwrap();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(data(event)).await.unwrap();
            assert_eq!(next_data(response.body_mut()).await, event, "tls: {tls}");
        }
    }
}

async fn an_upload_reaches_the_backend_while_it_is_being_sent(kind: Kind) {
    let upstream = serve(|mut request: Request<Incoming>| async move {
        // Answers as soon as the first part is there, and then gives back the rest.
        let first = next_data(request.body_mut()).await;
        let (feed, body) = fed();
        tokio::spawn(async move {
            feed.send(Frame::data(first)).await.unwrap();
            while let Some(Ok(frame)) = request.body_mut().frame().await {
                feed.send(frame).await.unwrap();
            }
        });
        Response::new(body)
    })
    .await;
    let front = front(kind, upstream).await;
    for tls in [false, true] {
        let (feed, body) = fed();
        feed.send(data("first")).await.unwrap();
        let request = Request::post("/").header("host", "x").body(body).unwrap();
        let mut response = tokio::time::timeout(SOON, send(&front, tls, request))
            .await
            .expect("held back");
        assert_eq!(next_data(response.body_mut()).await, "first", "tls: {tls}");
        feed.send(data("second")).await.unwrap();
        assert_eq!(next_data(response.body_mut()).await, "second", "tls: {tls}");
    }
}

/// One direction at a time: nginx stops reading the rest of a plain HTTP request when the upstream's socket is
/// full after the response began (`preserve_output` is for gRPC only), so a large echo is not possible there.
async fn a_large_body_passes_up_and_down_and_never_touches_the_disk(kind: Kind) {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 64;
    fn large() -> Body {
        let chunk = Bytes::from(vec![7; CHUNK]);
        let frames = (0..CHUNKS).map(move |_| Ok::<_, hyper::Error>(Frame::data(chunk.clone())));
        BodyExt::boxed(StreamBody::new(stream::iter(frames)))
    }
    let upstream = serve(|mut request: Request<Incoming>| async move {
        let mut received = 0;
        while let Some(frame) = request.body_mut().frame().await {
            received += frame.unwrap().into_data().unwrap().len();
        }
        Response::builder()
            .header("x-received", received)
            .body(large())
            .unwrap()
    })
    .await;
    let front = front(kind, upstream).await;
    for tls in [false, true] {
        let request = Request::put("/").header("host", "x").body(large()).unwrap();
        let mut response = send(&front, tls, request).await;
        assert_eq!(response.headers()["x-received"], (CHUNK * CHUNKS).to_string());
        let mut received = 0;
        let mut on_disk = 0;
        while let Some(frame) = response.body_mut().frame().await {
            received += frame.unwrap().into_data().unwrap().len();
            if kind == Kind::Nginx {
                on_disk += files_below(&front.state.run().join("nginx"));
            }
        }
        assert_eq!((received, on_disk), (CHUNK * CHUNKS, 0), "tls: {tls}");
    }
}

fn files_below(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { files_below(&path) } else { 1 }
        })
        .sum()
}

async fn grpc_streams_both_ways_with_its_trailers_under_the_same_check(kind: Kind) {
    let seen: Arc<Mutex<Option<HeaderMap>>> = Arc::default();
    let shared = seen.clone();
    let upstream = serve(move |mut request: Request<Incoming>| {
        assert_eq!(request.version(), hyper::Version::HTTP_2);
        *shared.lock().unwrap() = Some(request.headers().clone());
        async move {
            let (feed, body) = fed();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = request.body_mut().frame().await {
                    feed.send(frame).await.unwrap();
                }
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                feed.send(Frame::trailers(trailers)).await.unwrap();
            });
            Response::builder()
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap()
        }
    })
    .await;
    let front = front(kind, upstream).await;
    let call = async |who| {
        let stream = front.tls(who, &[b"h2"]).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let (feed, body) = fed();
        let request = Request::post("https://db.internal/pkg.Service/Chat")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("x-dstack-app-id", "spoofed")
            .header("x-client-verify", "spoofed")
            .body(body)
            .unwrap();
        feed.send(data("ping")).await.unwrap();
        (feed, sender.send_request(request).await.unwrap())
    };

    let (feed, mut response) = call(Who::App).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(next_data(response.body_mut()).await, "ping");
    feed.send(data("pong")).await.unwrap();
    assert_eq!(next_data(response.body_mut()).await, "pong");
    drop(feed);
    let trailers = loop {
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        if let Ok(trailers) = frame.into_trailers() {
            break trailers;
        }
    };
    assert_eq!(trailers["grpc-status"], "0");
    let headers = seen.lock().unwrap().take().unwrap();
    assert_eq!(headers["x-dstack-app-id"], app(CALLER).to_string());
    assert_eq!(headers["x-forwarded-host"], "db.internal");
    assert!(!headers.values().any(|v| v == "spoofed"), "{headers:?}");

    let (_feed, refused) = call(Who::Nobody).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(seen.lock().unwrap().is_none());
}

/// A hostile peer's answer commands our front nothing, and no nginx before it.
async fn headers_for_nginx_do_nothing(kind: Kind) {
    let upstream = serve(|_| async {
        Response::builder()
            .header("x-accel-redirect", "/vpc/0/shared_key")
            .header("x-accel-limit-rate", "1")
            .header("x-accel-buffering", "yes")
            .body(body("the peer's own words"))
            .unwrap()
    })
    .await;
    let front = front(kind, upstream).await;
    std::fs::write(front.state.vpc().join("shared_key"), "a secret").unwrap();
    for tls in [false, true] {
        let answer = tokio::time::timeout(SOON, send(&front, tls, get("x", "/")));
        let answer = answer.await.expect("no speed limit");
        if kind == Kind::Builtin {
            let mut names = answer.headers().keys();
            assert!(
                !names.any(|name| name.as_str().starts_with("x-accel")),
                "tls: {tls}"
            );
        }
        let answer = text(answer).await;
        assert_eq!(answer, "the peer's own words", "tls: {tls}");
    }
}

/// The body is asked for when the backend wants it, and a refused one is not asked for at all.
async fn a_client_that_expects_a_100_gets_one_before_its_body(kind: Kind) {
    let upstream = serve(|request: Request<Incoming>| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(body(bytes))
    })
    .await;
    let front = front(kind, upstream).await;
    let request = b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    let mut stream = front.tls(Who::App, &[b"http/1.1"]).await;
    stream.write_all(request).await.unwrap();
    let mut interim = Vec::new();
    while !interim.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(SOON, stream.read_u8()).await;
        interim.push(byte.expect("a 100").unwrap());
    }
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{interim:?}");
    stream.write_all(b"body").await.unwrap();
    let mut answer = String::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("body"),
        "{answer}"
    );
}

/// Who opens a connection and says nothing, or says it slowly, is not waited for; garbage is no request.
async fn a_handshake_that_takes_too_long_is_cut(kind: Kind) {
    let front = Front::start(kind, |spec, _| {
        spec.limits.header_timeout = Duration::from_secs(1);
    })
    .await;
    // Nothing; the beginning of a TLS record; something else.
    for sent in [
        &b""[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00\xff garbage\r\n\r\n",
    ] {
        let mut stream = tokio::net::TcpStream::connect(front.https).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        let _ = end.unwrap_or_else(|_| panic!("{sent:?} is waited for"));
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }
    let health = front.https(Who::Nobody, get("x", "/health")).await;
    assert_eq!(health.status(), 200);
}

/// The built-in front keeps less of what is idle; nobody is to notice.
async fn a_connection_that_was_idle_goes_on_where_it_was(kind: Kind) {
    let front = front(kind, echo("one").await).await;
    let mut stream = front.tls(Who::App, &[b"http/1.1"]).await;
    let idle = Duration::from_millis(2500);
    let ask = |number: usize| format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n");
    let (third, half) = (ask(3), 11);
    for (words, pause, answered) in [
        (ask(1), Duration::ZERO, Some(1)),
        (ask(2), idle, Some(2)),
        (third[..half].to_owned(), idle, None),
        (third[half..].to_owned(), idle, Some(3)),
        (ask(4) + &ask(5), Duration::ZERO, Some(5)),
    ] {
        tokio::time::sleep(pause).await;
        stream.write_all(words.as_bytes()).await.unwrap();
        let Some(number) = answered else { continue };
        let (wanted, mut heard) = (format!("GET /{number}\n"), Vec::new());
        while !String::from_utf8_lossy(&heard).contains(&wanted) {
            let read = tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut heard));
            assert!(
                read.await.expect("an answer").unwrap() > 0,
                "closed before {wanted}"
            );
        }
    }
}
