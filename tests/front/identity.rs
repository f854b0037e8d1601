//! Who calls `mesh.https_listen`: each claim gets what it deserves, for as long as it holds.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use rustls::HandshakeKind;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fronts::{Kind, body, client, http2, on_both_fronts, text};
use crate::kit::forgeries::{self, claims, root};
use crate::kit::pki::{Shape, app, id};
use crate::kit::{THEM, them};
use crate::peer::*;
use crate::rendered;

on_both_fronts![
    each_claim_gets_what_it_deserves_and_the_backend_hears_of_no_other,
    neither_connection_nor_session_outlives_a_list_or_a_root,
    an_open_http2_connection_is_as_good_as_the_list_of_the_moment,
    an_open_connection_does_not_outlive_its_certificate,
];

async fn each_claim_gets_what_it_deserves_and_the_backend_hears_of_no_other(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    for claim in claims(&root) {
        for (version, protocol) in [(TLS12, HTTP1), (TLS13, HTTP1), (TLS13, HTTP2)] {
            let what = format!("{}, {version:?}", claim.what);
            let shown = Some((claim.chain.clone(), claim.key.clone_key()));
            let config = Arc::new(client(shown, &[version], &[protocol]));
            let expected = match kind {
                Kind::Nginx => claim.calling,
                Kind::Builtin => claim.calling_builtin(),
            };
            // A leaf that nobody may trust who cannot read all of it ends the handshake.
            if kind == Kind::Builtin && claim.what.contains("critical") {
                assert_eq!(serving.attempt(&config).await, None, "{what}");
                assert_eq!(serving.backend.take(), "", "{what}");
                continue;
            }
            let response = ask(serving.connect(&config).await, "/secret").await;
            assert_eq!(response.status().as_u16(), expected, "{what}");
            let answer = text(response).await;
            let told = serving.backend.take();
            if expected == 200 {
                let ids = told.lines().filter(|line| line.starts_with("x-dstack-app-id:"));
                assert_eq!(
                    ids.collect::<Vec<_>>(),
                    [format!("x-dstack-app-id: {}", them())],
                    "{what}"
                );
            } else {
                assert_eq!(told, "", "{what}");
                let json: serde_json::Value = serde_json::from_str(&answer).expect(&what);
                assert!(json["code"].is_string(), "{what}: {answer}");
            }
        }
    }
    serving.us.mesh.shutdown().await;
}

/// What was decided before is decided anew: on a kept connection, and on a session that is taken up again.
async fn neither_connection_nor_session_outlives_a_list_or_a_root(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    for version in [TLS12, TLS13] {
        let (leaf, ca) = app(&root, id(THEM));
        let mut config = client(shown(&leaf, &ca), &[version], &[HTTP1]);
        config.enable_early_data = true;
        let config = Arc::new(config);
        let request = "GET /kept HTTP/1.1\r\nhost: app.internal\r\n\r\n";
        let resumed = async || {
            let mut stream = serving.connect(&config).await;
            let session = stream.get_mut().1;
            assert!(session.early_data().is_none(), "anybody could repeat it");
            let kind = session.handshake_kind().unwrap();
            (kind, ask(stream, "/resumed").await.status().as_u16())
        };
        assert_eq!(resumed().await, (HandshakeKind::Full, 200), "{version:?}");
        assert_eq!(resumed().await, (HandshakeKind::Resumed, 200), "{version:?}");

        let mut kept = serving.connect(&config).await;
        let mut kept_is = async || {
            kept.write_all(request.as_bytes()).await.unwrap();
            let mut buffer = [0; 4096];
            let mut answer = String::new();
            while !answer.contains("kept") && !answer.contains("\"code\"") {
                let count = kept.read(&mut buffer).await.unwrap();
                assert!(count > 0, "{answer}");
                answer += &String::from_utf8_lossy(&buffer[..count]);
            }
            status(&answer)
        };
        assert_eq!(kept_is().await, 200);
        serving.allow(&[0xbb]).await;
        serving.backend.take();
        assert_eq!(kept_is().await, 403, "{version:?}");
        assert_eq!(resumed().await, (HandshakeKind::Resumed, 403), "{version:?}");
        assert_eq!(serving.backend.take(), "");
        serving.allow(&[THEM]).await;
        assert_eq!(kept_is().await, 200);
    }

    // A certificate that comes from another root comes with it, and the front takes it over.
    let configs = [TLS12, TLS13].map(|version| {
        let (leaf, ca) = app(&root, id(THEM));
        Arc::new(client(shown(&leaf, &ca), &[version], &[HTTP1]))
    });
    for config in &configs {
        assert_eq!(ask(serving.connect(config).await, "/").await.status(), 200);
    }
    let (leaf, ca) = app(&root, id(THEM));
    let config = Arc::new(client(shown(&leaf, &ca), &[TLS13], &[HTTP2]));
    let mut kept = http2(serving.connect(&config).await).await;
    assert_eq!(ask_http2(&mut kept, "/").await.status(), 200);
    let before = serving
        .connect(&configs[1])
        .await
        .get_ref()
        .1
        .peer_certificates()
        .unwrap()
        .to_vec();
    let identity = serving.front.state.identity().join("000001");
    let new = forgeries::root();
    rendered::identity(&serving.front.pki, id(0xaa), &identity);
    std::fs::write(identity.join("ca.pem"), &new.pem).unwrap();
    serving.front.reload();
    let nobody = over_http1(None);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    // Old workers may answer for a moment.
    let mut calm = 0;
    while calm < 20 {
        let now = serving
            .connect(&nobody)
            .await
            .get_ref()
            .1
            .peer_certificates()
            .unwrap()
            .to_vec();
        calm = if now == before { 0 } else { calm + 1 };
        assert!(tokio::time::Instant::now() < deadline, "no new certificate");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    serving.backend.take();
    for config in &configs {
        let stream = serving.connect(config).await;
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(ask(stream, "/").await.status(), 401);
    }
    // nginx has closed it, with the workers that believed the old root.
    let request = Request::get("https://app.internal/").body(body("")).unwrap();
    let kept = kept
        .send_request(request)
        .await
        .map(|answer| answer.status().as_u16());
    assert_eq!(kept.ok(), (kind == Kind::Builtin).then_some(401));
    assert_eq!(serving.backend.take(), "");
    let theirs = genuine(&new);
    assert_eq!(ask(serving.connect(&theirs).await, "/").await.status(), 200);
    serving.us.mesh.shutdown().await;
}

/// As over HTTP/1.1, so on one HTTP/2 connection: each request is looked at by itself.
async fn an_open_http2_connection_is_as_good_as_the_list_of_the_moment(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    let (leaf, ca) = app(&root, id(THEM));
    let config = Arc::new(client(shown(&leaf, &ca), &[TLS13], &[HTTP2]));
    let mut kept = http2(serving.connect(&config).await).await;
    for (allowed, expected) in [(THEM, 200), (0xbb, 403), (THEM, 200)] {
        serving.allow(&[allowed]).await;
        serving.backend.take();
        assert_eq!(ask_http2(&mut kept, "/kept").await.status(), expected);
        assert_eq!(serving.backend.take().is_empty(), expected != 200);
    }
    serving.us.mesh.shutdown().await;
}

/// A certificate ends where it says, on a connection that was opened in time, too.
async fn an_open_connection_does_not_outlive_its_certificate(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    let ca = root.sign(&Shape::app_ca(id(THEM)));
    let soon = OffsetDateTime::now_utc() + Duration::from_secs(5);
    let leaf = ca.sign(&Shape::leaf(id(THEM)).with(|s| s.not_after = soon));
    let config = Arc::new(client(shown(&leaf, &ca), &[TLS13], &[HTTP2]));
    let mut kept = http2(serving.connect(&config).await).await;
    let mut before = 0;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        serving.backend.take();
        let status = ask_http2(&mut kept, "/kept").await.status();
        if status == 401 {
            break;
        }
        assert_eq!(status, 200);
        before += 1;
        assert!(tokio::time::Instant::now() < deadline, "it goes on for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(before > 0, "it was never let in");
    assert!(OffsetDateTime::now_utc() >= soon.replace_nanosecond(0).unwrap());
    assert_eq!(serving.backend.take(), "");
    serving.us.mesh.shutdown().await;
}
