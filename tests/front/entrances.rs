//! `mesh.https_listen` under attack: no path, header, version or size leads around the certificate.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fronts::{Kind, client, on_both_fronts, text};
use crate::kit::forgeries::root;
use crate::kit::pki::{Shape, app, id};
use crate::kit::{THEM, openssl, them};
use crate::peer::*;

on_both_fronts![
    there_is_one_way_in,
    nothing_in_a_request_makes_a_caller,
    large_certificates_are_read_or_refused,
    weak_keys_old_versions_and_renegotiation_are_refused,
];

/// No path, Host or protocol leads around the check.
async fn there_is_one_way_in(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    let (theirs, nobody) = (genuine(&root), over_http1(None));
    let static_pages = ["/health", "/health?x=/secret"];
    // The same path for nginx, as for RFC 3986 §6.2.2; the built-in front compares bytes, and lets fewer in.
    let other_spellings = ["/%68ealth", "/x/../health", "//health", "/./health"];
    let spelt = if kind == Kind::Nginx { 200 } else { 401 };
    let no_pages = [
        "/",
        "/auth",
        "/health/",
        "/health/../secret",
        "/healthy",
        "/Health",
        "/health%2f",
        "/health;x",
        "/health/%2e%2e/secret",
        "//",
        "/.dstack-vpc/",
        "/.dstack-vpc/generation/x",
        "/.dstack-vpc/../secret",
        "/@vpc_error",
        "/vpc/0/shared_key",
    ];
    let more = [
        "",
        "content-type: application/grpc\r\n",
        "upgrade: websocket\r\nconnection: close, upgrade\r\n",
    ];
    for (paths, expected) in [
        (&static_pages[..], 200),
        (&other_spellings, spelt),
        (&no_pages, 401),
    ] {
        for path in paths {
            for more in more {
                let request =
                    format!("GET {path} HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n{more}\r\n");
                let answer = serving.raw(&nobody, &request).await;
                assert_eq!(status(&answer), expected, "{path} {more:?}: {answer}");
                assert_eq!(serving.backend.take(), "", "{path} {more:?}");
            }
        }
    }
    for inner in [
        "/.dstack-vpc/auth",
        "//.dstack-vpc/auth",
        "/%2edstack-vpc/auth",
        "/x/../.dstack-vpc/auth?",
    ] {
        for (config, expected) in [(&nobody, 401), (&theirs, 200)] {
            let request = format!("GET {inner} HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n\r\n");
            // What nginx asks the auth service is nobody else's; the built-in front has no such place.
            let expected = if kind == Kind::Nginx { 404 } else { expected };
            assert_eq!(status(&serving.raw(config, &request).await), expected, "{inner}");
        }
    }
    serving.backend.take();

    // Whatever is said of the Host, what is checked is what is reached.
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nhost: closed.internal\r\n", 403),
        ("GET / HTTP/1.1\r\nhost: CLOSED.internal.:443\r\n", 403),
        (
            "GET https://closed.internal/ HTTP/1.1\r\nhost: app.internal\r\n",
            403,
        ),
        (
            "GET HTTPS://app.internal@closed.internal/ HTTP/1.1\r\nhost: app.internal\r\n",
            400,
        ),
        (
            "GET / HTTP/1.1\r\nhost: app.internal\r\nhost: closed.internal\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\nhost: closed.internal, app.internal\r\n", 400),
        ("GET / HTTP/1.1\r\nhost : closed.internal\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a.stranger\r\n", 200),
    ] {
        let answer = serving
            .raw(&theirs, format!("{request}connection: close\r\n\r\n"))
            .await;
        assert_eq!(status(&answer), expected, "{request}: {answer}");
        let told = serving.backend.take();
        assert_eq!(told.is_empty(), expected != 200, "{request}: {told}");
        assert!(!told.contains("closed"), "{told}");
    }
    let stream = serving
        .front
        .connect(Arc::new(client(None, &[TLS13], &[HTTP2])), "app.internal");
    assert_eq!(ask(stream.await.unwrap(), "/secret").await.status(), 401);

    let connect = "CONNECT closed.internal:443 HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n\r\n";
    let answer = serving.raw(&theirs, connect).await;
    assert!([400, 405].contains(&status(&answer)), "{answer}");

    // Without TLS there is nobody to ask.
    let mut plain = TcpStream::connect(serving.front.https).await.unwrap();
    plain
        .write_all(b"GET / HTTP/1.0\r\nhost: app.internal\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    match kind {
        Kind::Nginx => assert_eq!(status(&String::from_utf8_lossy(&answer)), 400),
        // A TLS alert.
        Kind::Builtin => assert_eq!(answer.first(), Some(&21), "{answer:?}"),
    }
    assert_eq!(serving.backend.take(), "");
    serving.us.mesh.shutdown().await;
}

/// Who the caller is comes from the handshake alone.
async fn nothing_in_a_request_makes_a_caller(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    let (leaf, ca) = app(&root, id(THEM));
    let escaped = percent_encoding::utf8_percent_encode(&leaf.pem, percent_encoding::NON_ALPHANUMERIC);
    let one_line = leaf.pem.replace('\n', "\t");
    let other = app(&root, id(0xbb));
    let forged = them();
    let claims = [
        format!("x-client-verify: SUCCESS\r\nx-client-cert: {escaped}\r\n"),
        format!("X-Client-Verify: SUCCESS\r\nX-CLIENT-CERT: {escaped}\r\nx-client-cert: {escaped}\r\n"),
        format!("x_client_verify: SUCCESS\r\nx_client_cert: {escaped}\r\n"),
        format!("ssl-client-verify: SUCCESS\r\nssl-client-cert: {one_line}\r\n"),
        format!("x-ssl-cert: {one_line}\r\nx-forwarded-client-cert: Cert=\"{escaped}\"\r\n"),
        format!("x-dstack-app-id: {forged}\r\nx-dstack-backend: default\r\n"),
        format!("X-DSTACK-APP-ID: {forged}\r\nx_dstack_app_id: {forged}\r\nx-dstack_app-id: {forged}\r\n"),
        format!("connection: x-dstack-app-id, x-client-cert\r\nx-dstack-app-id: {forged}\r\n"),
    ];
    for config in [over_http1(None), over_http1(shown(&other.0, &other.1))] {
        for claim in &claims {
            let request = format!("GET / HTTP/1.1\r\nhost: app.internal\r\n{claim}connection: close\r\n\r\n");
            let answer = serving.raw(&config, &request).await;
            assert!([401, 403].contains(&status(&answer)), "{claim}: {answer}");
            assert_eq!(serving.backend.take(), "", "{claim}");
        }
    }

    // One who may come in is still not whom it says to be, in trailers neither.
    let theirs = over_http1(shown(&leaf, &ca));
    let other = id(0xbb).to_string();
    for claim in claims.map(|claim| claim.replace(&forged, &other)) {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: app.internal\r\n{claim}connection: close\r\ntrailer: x-dstack-app-id\r\n\
             transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Dstack-App-Id: {other}\r\n\
             X-Client-Verify: {other}\r\nx-client-cert: {other}\r\nx_client_cert: {other}\r\n\r\n"
        );
        assert_eq!(status(&serving.raw(&theirs, &request).await), 200, "{claim}");
        let told = serving.backend.take();
        assert!(!told.contains(&other), "{told}");
        assert!(
            !told.contains("\r\nx-client") && !told.contains("\r\nx_"),
            "{told}"
        );
        assert_eq!(told.matches("app-id: ").count(), 1, "{told}");
        assert!(
            told.contains(&format!("\r\nx-dstack-app-id: {forged}\r\n")),
            "{told}"
        );
    }
    serving.us.mesh.shutdown().await;
}

/// A certificate may be larger than what is taken over: then it is refused, by nginx at the latest when the header that
/// brings it to the auth service does not fit any more, by the built-in front when it does not fit
/// into a message of TLS, and nothing breaks.
async fn large_certificates_are_read_or_refused(kind: Kind) {
    let root = root();
    let serving = Serving::start(kind, &root).await;
    let ca = root.sign(&Shape::app_ca(id(THEM)));
    let nginx = [
        (20_000, 200),
        (40_000, 200),
        (60_000, 401),
        (80_000, 401),
        (95_000, 500),
    ];
    let builtin = [
        (20_000, Some(200)),
        (40_000, Some(200)),
        (80_000, None),
        (95_000, None),
    ];
    let cases = match kind {
        Kind::Nginx => nginx.map(|(padding, status)| (padding, Some(status))).to_vec(),
        Kind::Builtin => builtin.to_vec(),
    };
    for (padding, expected) in cases {
        let leaf = ca.sign(&Shape::leaf(id(THEM)).with(|s| s.padding = padding));
        let config = over_http1(shown(&leaf, &ca));
        match expected {
            Some(expected) => {
                let response = ask(serving.connect(&config).await, "/").await;
                assert_eq!(
                    response.status(),
                    expected,
                    "{padding} bytes: {}",
                    text(response).await
                );
            }
            None => assert_eq!(serving.attempt(&config).await, None, "{padding} bytes"),
        }
        assert_eq!(serving.backend.take().is_empty(), expected != Some(200));
    }
    assert_eq!(
        ask(serving.connect(&genuine(&root)).await, "/").await.status(),
        200
    );
    serving.us.mesh.shutdown().await;
}

async fn weak_keys_old_versions_and_renegotiation_are_refused(kind: Kind) {
    let root = std::fs::read_to_string(openssl::chain("root")).unwrap();
    let serving = Serving::believing(kind, &root).await;
    let request = "GET /secret HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n\r\n";
    let ask = async |name, version| {
        openssl::client(name, serving.front.https, &[version, "-ign_eof"], request).await
    };
    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["strong_rsa", "strong_pss"] {
            let said = ask(name, version).await;
            assert!(said.contains("HTTP/1.1 200 OK"), "{name} {version}: {said}");
            assert!(serving.backend.take().contains(&them()));
        }
        for name in [
            "ca_rsa1024",
            "ca_p192",
            "ca_sha1",
            "leaf_sha1",
            "leaf_md5",
            "leaf_rsa1024",
            "leaf_p192",
            "leaf_p224",
        ] {
            let said = ask(name, version).await;
            // In the handshake already, or after it.
            let refused =
                said.contains("HTTP/1.1 401") || said.contains("alert") || said.contains("no suitable");
            assert!(
                refused && !said.contains("HTTP/1.1 200"),
                "{name} {version}: {said}"
            );
            assert_eq!(serving.backend.take(), "", "{name} {version}");
        }
    }
    for version in ["-tls1", "-tls1_1"] {
        let said = ask("strong_rsa", version).await;
        // OpenSSL says which; rustls finds none of the signatures it would take.
        let refused = match kind {
            Kind::Nginx => "alert protocol version",
            Kind::Builtin => "alert",
        };
        assert!(
            said.contains(refused) && !said.contains("HTTP/1.1"),
            "{version}: {said}"
        );
    }
    let said = openssl::client("strong_rsa", serving.front.https, &["-tls1_2"], "R\n").await;
    assert!(
        said.contains("RENEGOTIATING") && said.contains("no renegotiation"),
        "{said}"
    );
    assert_eq!(serving.backend.take(), "");
    serving.us.mesh.shutdown().await;
}
