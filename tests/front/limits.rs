//! What `[limits]` says holds for either front.

use std::time::Duration;

use dstack_vpc::spec::Spec;
use hyper::StatusCode;
use hyper::header::HeaderName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fronts::*;
use crate::rendered::*;
use crate::streams::SOON;

on_both_fronts![
    what_stands_still_is_given_up,
    a_head_of_more_than_so_many_kib_is_refused,
    a_connection_has_so_many_streams_at_once,
];

/// A front before `upstream`, with other limits.
async fn limited(kind: Kind, upstream: std::net::SocketAddr, change: fn(&mut Spec)) -> Front {
    Front::start(kind, |spec, _| {
        spec.backends = vec![backend("default", "_", &[&upstream.to_string()])];
        change(spec);
    })
    .await
}

async fn what_stands_still_is_given_up(kind: Kind) {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let short = |spec: &mut Spec| spec.limits.stall_timeout = Duration::from_secs(1);
    let front = limited(kind, silent.local_addr().unwrap(), short).await;
    let given_up = timeout(SOON, front.https(Who::App, get("x", "/")));
    let given_up = given_up.await.expect("an answer");
    assert_eq!(given_up.status(), StatusCode::GATEWAY_TIMEOUT);
    let said = text(given_up).await;
    assert!(said.contains("\"code\":\"backend_timeout\""), "{said}");

    let front = limited(kind, echo("default").await, short).await;
    let mut stream = front.tls(Who::App, &[b"http/1.1"]).await;
    let half = b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf";
    stream.write_all(half).await.unwrap();
    let mut answer = Vec::new();
    let reading = timeout(SOON, stream.read_to_end(&mut answer)).await;
    // Answered or not, it ends.
    let _ = reading.expect("the rest is waited for");
    assert_eq!(
        front.https(Who::App, get("x", "/")).await.status(),
        StatusCode::OK
    );
}

async fn a_head_of_more_than_so_many_kib_is_refused(kind: Kind) {
    let small = |spec: &mut Spec| spec.limits.header_kib = 16;
    let front = limited(kind, echo("default").await, small).await;
    for (kib, fits) in [(10, true), (40, false)] {
        let mut request = get("x", "/");
        for number in 0..kib / 2 {
            let name: HeaderName = format!("x-more-{number}").parse().unwrap();
            let value = "v".repeat(2000).parse().unwrap();
            request.headers_mut().insert(name, value);
        }
        let status = front.https(Who::App, request).await.status();
        assert_eq!(status == StatusCode::OK, fits, "{kib} KiB: {status}");
        assert!(fits || status.is_client_error(), "{status}");
    }
}

async fn a_connection_has_so_many_streams_at_once(kind: Kind) {
    let few = |spec: &mut Spec| spec.limits.streams = 5;
    let front = limited(kind, echo("default").await, few).await;
    let mut stream = front.tls(Who::App, &[b"h2"]).await;
    // RFC 9113 §3.4: the preface, and SETTINGS that say nothing.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    let mut head = [0; 9];
    timeout(SOON, stream.read_exact(&mut head))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(head[3], 4, "SETTINGS come first");
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.unwrap();
    let most = settings.chunks(6).find(|setting| setting[..2] == [0, 3]);
    assert_eq!(most.expect("SETTINGS_MAX_CONCURRENT_STREAMS")[2..], [0, 0, 0, 5]);
}
