//! The addresses of a backend: who is asked, who is passed over, and what is sent twice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fronts::*;
use crate::ingress::served_by;
use crate::rendered::*;
use crate::streams::{SOON, front, send};

on_both_fronts![
    a_backend_that_is_away_is_said_in_json,
    several_upstreams_share_the_load_and_a_dead_one_is_passed_over,
    the_upstream_with_the_fewest_requests_is_asked,
    an_upstream_that_failed_is_left_alone_for_a_while,
    what_may_be_sent_twice_finds_another_upstream_and_nothing_else_does,
    grpc_and_plain_calls_to_one_backend_do_not_meet_on_a_connection,
    a_grpc_call_finds_another_upstream_when_one_is_away,
    the_connection_to_the_upstream_is_kept_whatever_the_client_says,
    idle_connections_are_closed_before_the_backend_does,
];

async fn a_backend_that_is_away_is_said_in_json(kind: Kind) {
    let nobody = free_port();
    let front = before(kind, &[nobody]).await;
    let response = front.https(Who::App, get("x", "/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()["content-type"], "application/json");
    let answer: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(answer["code"], "backend_unreachable");
    assert_eq!(answer["hop"], "backend");
    let told = answer.to_string();
    assert!(
        !told.contains(&nobody.to_string()),
        "where it is is no caller's business: {told}"
    );
}

async fn several_upstreams_share_the_load_and_a_dead_one_is_passed_over(kind: Kind) {
    let front = before(kind, &[echo("one").await, echo("two").await, free_port()]).await;
    let mut seen = std::collections::BTreeSet::new();
    for method in ["GET", "POST"].repeat(10) {
        let mut request = get("x", "/");
        *request.method_mut() = method.parse().unwrap();
        let response = front.https(Who::App, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        seen.insert(served_by(&response).to_owned());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["one", "two"]);
}

async fn the_upstream_with_the_fewest_requests_is_asked(kind: Kind) {
    let held = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&held);
    let stuck = serve(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Response<Body>>()
    })
    .await;
    let front = before(kind, &[stuck, echo("quick").await]).await;
    // On one connection, so that one worker has them all.
    let mut sender = http2(front.tls(Who::App, &[b"h2"]).await).await;
    let mut waiting = Vec::new();
    for _ in 0..12 {
        let before = held.load(Ordering::SeqCst);
        let mut answer = Box::pin(sender.send_request(get_http2()));
        let arrived = async {
            while held.load(Ordering::SeqCst) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = &mut answer => drop(text(answer.unwrap()).await),
            () = arrived => waiting.push(answer),
            () = tokio::time::sleep(SOON) => panic!("neither asked nor answered"),
        }
    }
    // Each in turn would be six.
    assert!((1..=2).contains(&waiting.len()), "{}", waiting.len());
}

/// For ten seconds nobody asks it while there is another one, also where what it was sent is lost.
async fn an_upstream_that_failed_is_left_alone_for_a_while(kind: Kind) {
    // The built-in front tries what may be sent twice once more before it goes elsewhere.
    let gets = if kind == Kind::Builtin { 2 } else { 1 };
    for (method, asked, is_lost) in [("GET", gets, false), ("POST", 1, true)] {
        let (failing, heard) = hangs_up().await;
        let front = before(kind, &[failing, echo("alive").await]).await;
        let mut sender = http2(front.tls(Who::App, &[b"h2"]).await).await;
        let (begun, mut lost) = (Instant::now(), 0);
        for _ in 0..20 {
            let mut request = get_http2();
            *request.method_mut() = method.parse().unwrap();
            lost += usize::from(sender.send_request(request).await.unwrap().status() != 200);
        }
        let most = asked * (1 + begun.elapsed().as_secs() as usize / 10);
        let heard = heard.load(Ordering::SeqCst);
        assert!(
            (1..=most).contains(&heard),
            "{method}: {heard} in {:?}",
            begun.elapsed()
        );
        assert_eq!(lost, if is_lost { heard } else { 0 }, "{method}");
    }
}

/// A front with these addresses behind its one backend.
async fn before(kind: Kind, upstreams: &[SocketAddr]) -> Front {
    let upstreams: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
    let upstreams: Vec<_> = upstreams.iter().map(String::as_str).collect();
    Front::start(kind, |spec, _| {
        spec.backends = vec![backend("default", "_", &upstreams)];
    })
    .await
}

fn get_http2() -> Request<Body> {
    Request::get("https://x/").body(body("")).unwrap()
}

/// An upstream that takes each request and hangs up, counting them.
async fn hangs_up() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, heard) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 8192];
            if let Ok(1..) = stream.read(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (addr, heard)
}

async fn what_may_be_sent_twice_finds_another_upstream_and_nothing_else_does(kind: Kind) {
    // A new front for each: an upstream that failed is left alone for a while.
    for (method, twice) in [("GET", true), ("DELETE", true), ("POST", false), ("PATCH", false)] {
        let (first, heard_first) = hangs_up().await;
        let (second, heard_second) = hangs_up().await;
        let heard = || heard_first.load(Ordering::SeqCst) + heard_second.load(Ordering::SeqCst);
        let front = before(kind, &[first, second]).await;
        let mut request = get("x", "/");
        *request.method_mut() = method.parse().unwrap();
        let response = front.https(Who::App, request).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{method}");
        assert!(text(response).await.contains("\"backend_unreachable\""));
        assert_eq!(heard() > 1, twice, "{method}: {}", heard());

        // And with one that lives beside them, what may be sent twice arrives.
        let alive = echo("alive").await;
        let front = before(kind, &[first, second, alive]).await;
        for _ in 0..3 {
            let before = heard();
            let mut request = get("x", "/");
            *request.method_mut() = method.parse().unwrap();
            let response = front.https(Who::App, request).await;
            let lost = heard() - before;
            match (twice, lost) {
                (true, _) | (false, 0) => assert_eq!(response.status(), 200, "{method}"),
                (false, _) => assert_eq!((response.status().as_u16(), lost), (502, 1), "{method}"),
            }
        }
    }
}

/// nginx keeps idle connections by upstream group, whatever was spoken on them.
async fn grpc_and_plain_calls_to_one_backend_do_not_meet_on_a_connection(kind: Kind) {
    let upstream = serve(|request: Request<Incoming>| async move {
        Response::new(body(format!("{:?}", request.version())))
    })
    .await;
    let front = front(kind, upstream).await;
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

async fn a_grpc_call_finds_another_upstream_when_one_is_away(kind: Kind) {
    let alive = serve(|request: Request<Incoming>| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        Response::builder()
            .header("grpc-status", "0")
            .body(body(bytes))
            .unwrap()
    })
    .await;
    let call = || {
        let mut request = Request::new(body("asked once"));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = "https://x/vpc.Chat/Echo".parse().unwrap();
        let grpc = "application/grpc".parse().unwrap();
        request.headers_mut().insert("content-type", grpc);
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        request
    };
    for (away, status) in [(1, "0"), (2, "0"), (0, "14")] {
        let mut upstreams = vec![free_port(); away.max(1)];
        upstreams.extend((away > 0).then_some(alive));
        let front = before(kind, &upstreams).await;
        let mut sender = http2(front.tls(Who::App, &[b"h2"]).await).await;
        for _ in 0..4 {
            let response = sender.send_request(call()).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], status, "{upstreams:?}");
            if status == "0" {
                assert_eq!(text(response).await, "asked once");
            }
        }
    }
}

async fn the_connection_to_the_upstream_is_kept_whatever_the_client_says(kind: Kind) {
    let connections: Arc<Mutex<usize>> = Arc::default();
    let answer = |request: Request<Incoming>| async move {
        let said = request.headers().get("connection");
        Response::new(body(format!("{said:?}")))
    };
    let upstream = serve_counted(answer, connections.clone()).await;
    let front = front(kind, upstream).await;
    for tls in [false, true] {
        for connection in ["close", "keep-alive", "x-hop"].repeat(5) {
            let mut request = get("x", "/");
            request
                .headers_mut()
                .insert("connection", connection.parse().unwrap());
            assert_eq!(text(send(&front, tls, request).await).await, "None");
        }
    }
    // One request at a time. nginx has one worker and one connection for each upstream group; the built-in front has a
    // pool for each of its threads.
    let most = match kind {
        Kind::Nginx => 2,
        Kind::Builtin => std::thread::available_parallelism().unwrap().get(),
    };
    let opened = *connections.lock().unwrap();
    assert!(opened <= most, "{opened}");
}

/// Many servers close an idle connection after 5 seconds, and what is being sent into it then is lost.
async fn idle_connections_are_closed_before_the_backend_does(kind: Kind) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = front(kind, listener.local_addr().unwrap()).await;
    let patience = Duration::from_millis(4900);
    let backend = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let idle = tokio::time::timeout(patience, stream.read_u8());
        idle.await.expect("still open").expect_err("nothing was sent");
    });
    assert_eq!(send(&front, true, get("x", "/")).await.status(), 200);
    backend.await.unwrap();
}
