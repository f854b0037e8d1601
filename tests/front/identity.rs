//! `mesh.https_listen` under attack: nginx together with the auth service, or the built-in front, and a backend that
//! counts what it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dstack_vpc::mesh::MeshSettings;
use dstack_vpc::spec::AllowedApps;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::fronts::{Body, Front, Kind, body, client, exchange, get, http2, on_both_fronts, text};
use crate::kit::forgeries::{self, claims, root};
use crate::kit::pki::{Shape, Signed, app, id};
use crate::kit::{self, OurSide, THEM, openssl, them};
use crate::rendered::{self, backend};

const TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;
const TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

on_both_fronts![
    each_claim_gets_what_it_deserves_and_the_backend_hears_of_no_other,
    neither_connection_nor_session_outlives_a_list_or_a_root,
    an_open_http2_connection_is_as_good_as_the_list_of_the_moment,
    an_open_connection_does_not_outlive_its_certificate,
    there_is_one_way_in,
    nothing_in_a_request_makes_a_caller,
    large_certificates_are_read_or_refused,
    weak_keys_old_versions_and_renegotiation_are_refused,
];

/// A machine that believes one root and lets one app in.
struct Serving {
    front: Front,
    /// With the auth service that nginx asks.
    us: OurSide,
    backend: Told,
}

impl Serving {
    async fn start(kind: Kind, root: &Signed) -> Self {
        Self::believing(kind, &root.pem).await
    }

    /// `root`: in PEM.
    async fn believing(kind: Kind, root: &str) -> Self {
        let us = OurSide::start(&Signed::root(&Shape::root()), allowing(&[THEM])).await;
        let told = Told::start().await;
        let upstream = told.addr.to_string();
        let front = Front::start_with_auth(kind, us.auth, Arc::default(), |spec, facts| {
            spec.backends = vec![
                backend("default", "_", &[&upstream]),
                backend("closed", "closed.internal", &[&upstream]),
            ];
            for backend in &mut spec.backends {
                backend.allowed_apps = allowing(&[THEM]).backends[&backend.name].clone();
            }
            let identity = &facts.identity.as_ref().unwrap().value.dir;
            std::fs::write(identity.join("ca.pem"), root).unwrap();
        })
        .await;
        Self {
            front,
            us,
            backend: told,
        }
    }

    /// Who may call from now on.
    async fn allow(&self, apps: &[u8]) {
        let mesh = self.front.mesh().unwrap_or(&self.us.mesh);
        let settings = MeshSettings {
            backends: allowing(apps).backends,
            ..MeshSettings::clone(&mesh.settings())
        };
        mesh.update(settings).await.unwrap();
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
        self.front
            .connect(Arc::clone(config), "app.internal")
            .await
            .unwrap()
    }

    /// The status of an answer, if a connection comes about at all.
    async fn attempt(&self, config: &Arc<ClientConfig>) -> Option<u16> {
        let connecting = self.front.connect(Arc::clone(config), "app.internal");
        let mut stream = connecting.await.ok()?;
        let request = b"GET / HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let answer = read_all(stream).await;
        (!answer.is_empty()).then(|| status(&answer))
    }

    /// What raw bytes are answered with, until the front closes.
    async fn raw(&self, config: &Arc<ClientConfig>, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect(config).await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(stream).await
    }
}

/// Who may call the backend `default`; `closed` is for nobody here.
fn allowing(apps: &[u8]) -> MeshSettings {
    let only = |apps: &[u8]| apps.iter().map(|n| id(*n)).collect::<AllowedApps>();
    MeshSettings {
        backends: BTreeMap::from([
            ("default".parse().unwrap(), only(apps)),
            ("closed".parse().unwrap(), only(&[0xee])),
        ]),
        ..kit::settings(None)
    }
}

/// A backend that gives back every head it reads, and keeps all it was ever sent.
struct Told {
    addr: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Told {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let told = Self {
            addr: listener.local_addr().unwrap(),
            bytes: Arc::default(),
        };
        let bytes = Arc::clone(&told.bytes);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let bytes = Arc::clone(&bytes);
                tokio::spawn(async move {
                    let (mut head, mut buffer) = (Vec::new(), [0; 8192]);
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        bytes.lock().unwrap().extend(&buffer[..count]);
                        head.extend(&buffer[..count]);
                        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                            let start = format!(
                                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {end}\r\n\r\n"
                            );
                            let _ = stream.write_all(&[start.as_bytes(), &head[..end]].concat()).await;
                            let _ = stream.shutdown().await;
                        }
                    }
                });
            }
        });
        told
    }

    /// Everything since the last time.
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.bytes.lock().unwrap());
        String::from_utf8_lossy(&bytes).to_lowercase()
    }
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn shown(leaf: &Signed, ca: &Signed) -> Option<Shown> {
    Some((vec![leaf.der.clone(), ca.der.clone()], leaf.key()))
}

fn over_http1(shown: Option<Shown>) -> Arc<ClientConfig> {
    Arc::new(client(shown, &[TLS13], &[HTTP1]))
}

fn genuine(root: &Signed) -> Arc<ClientConfig> {
    let (leaf, ca) = app(root, id(THEM));
    over_http1(shown(&leaf, &ca))
}

async fn read_all(mut stream: TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    // TLS may end without a goodbye; what was said is all there is.
    let _ = read.await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// One GET over the protocol that was agreed on.
async fn ask(stream: TlsStream<TcpStream>, path: &str) -> Response<hyper::body::Incoming> {
    if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
        return exchange(stream, get("app.internal", path)).await;
    }
    ask_http2(&mut http2(stream).await, path).await
}

async fn ask_http2(sender: &mut SendRequest<Body>, path: &str) -> Response<hyper::body::Incoming> {
    let request = Request::get(format!("https://app.internal{path}"))
        .body(body(""))
        .unwrap();
    sender.send_request(request).await.unwrap()
}

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
    // nginx says no; the built-in front goes on waiting for a request, as long as for any.
    let refused = match serving.front.mesh() {
        None => "no renegotiation",
        Some(mesh) => {
            let mut settings = MeshSettings::clone(&mesh.settings());
            settings.limits.header_timeout = Duration::from_secs(2);
            mesh.update(settings).await.unwrap();
            "unexpected eof"
        }
    };
    let said = openssl::client("strong_rsa", serving.front.https, &["-tls1_2"], "R\n").await;
    assert!(said.contains("RENEGOTIATING") && said.contains(refused), "{said}");
    assert_eq!(serving.backend.take(), "");
    serving.us.mesh.shutdown().await;
}
