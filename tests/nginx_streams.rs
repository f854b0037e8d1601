//! What flows through nginx: nothing is held back, cut off or written to disk, on either front.

#[path = "rendered/nginx.rs"]
mod nginx;
mod rendered;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nginx::*;
use rendered::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Long enough for a slow machine, far shorter than any time limit in nginx.conf.
const SOON: Duration = Duration::from_secs(20);

/// A body that the test feeds frame by frame.
fn fed() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok::<_, hyper::Error>);
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

fn data(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

async fn next_data(body: &mut Incoming) -> Bytes {
    let frame = tokio::time::timeout(SOON, body.frame()).await.expect("held back");
    frame.unwrap().unwrap().into_data().unwrap()
}

/// nginx with `upstream` behind both fronts.
async fn front(upstream: std::net::SocketAddr) -> Front {
    Front::start(|spec, _| {
        spec.mesh.client_listen = upstream;
        spec.backends = vec![backend("default", "_", &[&upstream.to_string()])];
    })
    .await
}

/// Through one front or the other.
async fn send(front: &Front, tls: bool, request: Request<Body>) -> Response<Incoming> {
    match tls {
        true => front.https(Who::App, request).await,
        false => front.http(request).await,
    }
}

#[tokio::test]
async fn an_upgrade_becomes_a_pipe_in_both_directions() {
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
    let front = front(upstream).await;
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

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
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
    let front = front(upstream).await;
    for tls in [false, true] {
        let mut response = send(&front, tls, get("x", "/events")).await;
        let feed = sender.lock().unwrap().take().unwrap();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(data(event)).await.unwrap();
            assert_eq!(next_data(response.body_mut()).await, event, "tls: {tls}");
        }
    }
}

#[tokio::test]
async fn an_upload_reaches_the_backend_while_it_is_being_sent() {
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
    let front = front(upstream).await;
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
#[tokio::test]
async fn a_large_body_passes_up_and_down_and_never_touches_the_disk() {
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
    let front = front(upstream).await;
    for tls in [false, true] {
        let request = Request::put("/").header("host", "x").body(large()).unwrap();
        let mut response = send(&front, tls, request).await;
        assert_eq!(response.headers()["x-received"], (CHUNK * CHUNKS).to_string());
        let mut received = 0;
        let mut on_disk = 0;
        while let Some(frame) = response.body_mut().frame().await {
            received += frame.unwrap().into_data().unwrap().len();
            on_disk += files_below(&front.state.run().join("nginx"));
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

#[tokio::test]
async fn grpc_streams_both_ways_with_its_trailers_under_the_same_check() {
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
    let front = front(upstream).await;
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

/// nginx keeps idle connections by upstream group, whatever was spoken on them.
#[tokio::test]
async fn grpc_and_plain_calls_to_one_backend_do_not_meet_on_a_connection() {
    let upstream = serve(|request: Request<Incoming>| async move {
        Response::new(body(format!("{:?}", request.version())))
    })
    .await;
    let front = front(upstream).await;
    for (kind, expected) in [("text/plain", "HTTP/1.1"), ("application/grpc", "HTTP/2.0")].repeat(3) {
        let mut request = get("x", "/");
        request
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        let response = front.https(Who::App, request).await;
        assert_eq!(
            (response.status(), text(response).await.as_str()),
            (StatusCode::OK, expected)
        );
    }
}

#[tokio::test]
async fn the_connection_to_the_upstream_is_kept_whatever_the_client_says() {
    let connections: Arc<Mutex<usize>> = Arc::default();
    let answer = |request: Request<Incoming>| async move {
        let said = request.headers().get("connection");
        Response::new(body(format!("{said:?}")))
    };
    let upstream = serve_counted(answer, connections.clone()).await;
    let front = front(upstream).await;
    for tls in [false, true] {
        for connection in ["close", "keep-alive", "x-hop"].repeat(5) {
            let mut request = get("x", "/");
            request
                .headers_mut()
                .insert("connection", connection.parse().unwrap());
            assert_eq!(text(send(&front, tls, request).await).await, "None");
        }
    }
    // One worker, one request at a time: one connection for each upstream group.
    assert_eq!(*connections.lock().unwrap(), 2);
}

/// What the daemon says before a reload ends the client's connection, on either front, and nobody else can say it.
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
    let leaving = Front::start_with_auth(auth, Arc::default(), change).await;
    let staying = Front::start(change).await;
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

/// A hostile peer's answer commands our nginx nothing.
#[tokio::test]
async fn headers_for_nginx_do_nothing() {
    let upstream = serve(|_| async {
        Response::builder()
            .header("x-accel-redirect", "/vpc/0/shared_key")
            .header("x-accel-limit-rate", "1")
            .header("x-accel-buffering", "yes")
            .body(body("the peer's own words"))
            .unwrap()
    })
    .await;
    let front = front(upstream).await;
    std::fs::write(front.state.vpc().join("shared_key"), "a secret").unwrap();
    for tls in [false, true] {
        let answer = tokio::time::timeout(SOON, send(&front, tls, get("x", "/")));
        let answer = text(answer.await.expect("no speed limit")).await;
        assert_eq!(answer, "the peer's own words", "tls: {tls}");
    }
}

/// Many servers close an idle connection after 5 seconds, and what is being sent into it then is lost.
#[tokio::test]
async fn nginx_closes_idle_connections_before_the_backend_does() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = front(listener.local_addr().unwrap()).await;
    let backend = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let idle = tokio::time::timeout(Duration::from_millis(4900), stream.read_u8());
        idle.await.expect("still open").expect_err("nothing was sent");
    });
    assert_eq!(send(&front, true, get("x", "/")).await.status(), 200);
    backend.await.unwrap();
}

#[tokio::test]
async fn local_apps_get_the_seven_files_and_the_proxy_gets_the_rest() {
    let front = front(echo("proxy").await).await;
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
    ] {
        let response = front.http(get("x", &format!("/vpc/0/{name}"))).await;
        let proxied = response.headers().contains_key("x-served-by");
        // A path that leads out of /vpc/0/ is the proxy's, which sees it as it was sent.
        assert!(
            proxied == name.contains("..") && (proxied || response.status() == 404),
            "{name}"
        );
        assert!(!text(response).await.contains("PRIVATE KEY"), "{name}");
    }
    let gone = front.state.vpc().join("shared_key");
    std::fs::remove_file(gone).unwrap();
    assert_eq!(front.http(get("x", "/vpc/0/shared_key")).await.status(), 404);

    for path in ["/", "/vpc", "/vpc/1/shared_key", "/health", "/a?b=%20"] {
        let mut request = get("peer.internal:1", path);
        let target = app(7).to_string();
        request
            .headers_mut()
            .insert("x-dstack-target-app", target.parse().unwrap());
        let seen = text(front.http(request).await).await;
        assert!(seen.starts_with(&format!("GET {path}\n")), "{seen}");
        assert!(seen.contains("\nhost: peer.internal:1\n"), "{seen}");
        assert!(
            seen.contains(&format!("\nx-dstack-target-app: {target}\n")),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn an_ipv6_wildcard_takes_both_kinds_unless_ipv4_is_taken() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        eprintln!("this machine has no IPv6: nothing to see");
        return;
    }
    let proxy = echo("proxy").await;
    let wildcard = |port: u16| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    for taken in [false, true] {
        let front = Front::start(|spec, _| {
            spec.mesh.client_listen = proxy;
            // A port that is the proxy's on IPv4 must stay the proxy's.
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
