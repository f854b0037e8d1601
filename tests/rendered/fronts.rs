//! Either front as `desired` wants it, between clients and backends of the test's own: a real nginx on rendered files,
//! with an auth service of the test's, or the mesh itself.
#![allow(dead_code, unreachable_pub)]

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dstack_vpc::agent::dev::pki::{LeafRequest, Pki};
use dstack_vpc::desired::{Desired, Program};
use dstack_vpc::facts::Facts;
use dstack_vpc::identity::Identity;
use dstack_vpc::mesh::{Mesh, MeshSettings};
use dstack_vpc::paths::StateDir;
pub use dstack_vpc::spec::Front as Kind;
use dstack_vpc::spec::{Gateway, Spec};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::rendered::*;

pub type Body = BoxBody<Bytes, hyper::Error>;

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|e: Infallible| match e {})
        .boxed()
}

/// Serves HTTP/1.1 and h2c with `answer` on a port of its own, until the test's runtime ends.
pub async fn serve<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    serve_counted(answer, Arc::default()).await
}

/// The same, counting connections.
pub async fn serve_counted<F, R>(answer: F, connections: Arc<Mutex<usize>>) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            *connections.lock().unwrap() += 1;
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    addr
}

/// A backend that says who it is and what it was sent: the request line, then a line for each header.
pub async fn echo(name: &'static str) -> SocketAddr {
    serve(move |request: Request<Incoming>| async move {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (key, value) in request.headers() {
            text += &format!("{key}: {}\n", value.to_str().unwrap());
        }
        Response::builder()
            .header("x-served-by", name)
            .body(body(text))
            .unwrap()
    })
    .await
}

/// Makes two tests of each of these functions: `nginx` and `builtin`, in a module of the function's name.
macro_rules! on_both_fronts {
    ($($test:ident),* $(,)?) => {$(
        mod $test {
            use super::Kind;

            #[tokio::test]
            async fn nginx() {
                super::$test(Kind::Nginx).await;
            }

            #[tokio::test]
            async fn builtin() {
                super::$test(Kind::Builtin).await;
            }
        }
    )*};
}
pub(crate) use on_both_fronts;

/// A front as it is for the given spec. Every verified certificate may call every backend, except for `closed`.
pub struct Front {
    pub kind: Kind,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub pki: Pki,
    pub state: StateDir,
    pub tag: String,
    /// What nginx asked the auth service.
    pub asked: Arc<Mutex<Vec<HeaderMap>>>,
    _dir: tempfile::TempDir,
    engine: Engine,
}

enum Engine {
    Nginx(Child),
    Builtin {
        mesh: Mesh,
        identity: watch::Sender<Option<Arc<Identity>>>,
    },
}

/// Who we are.
pub const SELF: u8 = 0xaa;
/// Who the caller is.
pub const CALLER: u8 = 0xbb;

impl Front {
    pub async fn start(kind: Kind, change: impl FnOnce(&mut Spec, &mut Facts)) -> Self {
        let asked: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let log = asked.clone();
        let auth = serve(move |request: Request<Incoming>| {
            log.lock().unwrap().push(request.headers().clone());
            async move {
                let is = |name: &str, value: &str| request.headers().get(name).is_some_and(|v| v == value);
                let status = match (is("x-client-verify", "SUCCESS"), is("x-dstack-backend", "closed")) {
                    (true, false) => StatusCode::OK,
                    (true, true) => StatusCode::FORBIDDEN,
                    _ => StatusCode::UNAUTHORIZED,
                };
                Response::builder()
                    .status(status)
                    .header("x-dstack-app-id", app(CALLER).to_string())
                    .body(body(""))
                    .unwrap()
            }
        })
        .await;
        Self::start_with_auth(kind, auth, asked, change).await
    }

    /// The built-in front asks nobody.
    pub async fn start_with_auth(
        kind: Kind,
        auth: SocketAddr,
        asked: Arc<Mutex<Vec<HeaderMap>>>,
        change: impl FnOnce(&mut Spec, &mut Facts),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // nginx's workers have to get in when this test is root.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let pki = Pki::new().unwrap();
        identity(&pki, app(SELF), &state.identity().join("000001"));

        let mut spec = mesh();
        let mut facts = facts(&state);
        spec.mesh.front = kind;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        (spec.mesh.http_listen, spec.mesh.https_listen) = match kind {
            Kind::Nginx => (free_port(), free_port()),
            Kind::Builtin => (any_port, any_port),
        };
        spec.mesh.auth_listen = auth;
        spec.nginx.workers = 1;
        facts.programs.nginx.as_mut().unwrap().value.path = match kind {
            Kind::Nginx => program("nginx"),
            Kind::Builtin => "/no/nginx".into(),
        };
        change(&mut spec, &mut facts);
        if kind == Kind::Builtin {
            // Where a test has its own outbound proxy, the built-in front is one itself.
            spec.mesh.client_listen = any_port;
            for closed in spec.backends.iter_mut().filter(|b| b.name.as_str() == "closed") {
                closed.allowed_apps = [app(0xee)].into_iter().collect();
            }
        }
        let desired = render(&spec, &facts, &state).unwrap();
        for folder in desired.folders.keys() {
            std::fs::create_dir_all(folder).unwrap();
        }
        let (engine, http, https) = match kind {
            Kind::Nginx => {
                let nginx = start_nginx(&desired, &state);
                (nginx, spec.mesh.http_listen, spec.mesh.https_listen)
            }
            Kind::Builtin => start_builtin(desired.listeners.mesh.clone(), &state).await,
        };
        let front = Self {
            kind,
            http: reach(http),
            https: reach(https),
            pki,
            state,
            tag: desired.tag,
            asked,
            _dir: dir,
            engine,
        };
        for listener in [front.http, front.https] {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while TcpStream::connect(listener).await.is_err() {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "{kind:?} does not listen on {listener}"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        front
    }

    /// The mesh that is the front.
    pub fn mesh(&self) -> Option<&Mesh> {
        match &self.engine {
            Engine::Nginx(_) => None,
            Engine::Builtin { mesh, .. } => Some(mesh),
        }
    }

    pub fn is_builtin(&self) -> bool {
        self.kind == Kind::Builtin
    }

    /// A TLS connection with this certificate, offering these protocols.
    pub async fn tls(&self, who: Who, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let name = "aa-443s.apps.example.com";
        self.tls_named(who, rustls::ALL_VERSIONS, protocols, name).await
    }

    pub async fn tls_named(
        &self,
        who: Who,
        versions: &[&'static rustls::SupportedProtocolVersion],
        protocols: &[&[u8]],
        name: &'static str,
    ) -> TlsStream<TcpStream> {
        let issue = |pki: &Pki| pki.issue(&app(CALLER), &LeafRequest::both()).unwrap();
        let issued = match who {
            Who::Nobody => None,
            Who::App => Some(issue(&self.pki)),
            Who::Stranger => Some(issue(&Pki::new().unwrap())),
        };
        let shown = issued.map(|issued| (issued.chain()[..2].to_vec(), issued.key().unwrap()));
        let config = client(shown, versions, protocols);
        self.connect(Arc::new(config), name).await.unwrap()
    }

    /// A TLS connection as this client, which may come again with the same sessions.
    pub async fn connect(
        &self,
        config: Arc<ClientConfig>,
        name: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.https).await?;
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Has it take over the certificate in its files.
    pub fn reload(&self) {
        match &self.engine {
            Engine::Nginx(child) => {
                let pid = nix::unistd::Pid::from_raw(child.id() as i32);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
            }
            Engine::Builtin { identity, .. } => drop(identity.send_replace(Some(read_identity(&self.state)))),
        }
    }

    /// Lets it forget its certificate.
    pub fn forget_identity(&self) {
        if let Engine::Builtin { identity, .. } = &self.engine {
            identity.send_replace(None);
        }
    }

    /// One HTTP/1.1 request over TLS.
    pub async fn https(&self, who: Who, request: Request<Body>) -> Response<Incoming> {
        let stream = self.tls(who, &[b"http/1.1"]).await;
        exchange(stream, request).await
    }

    /// One HTTP/1.1 request to `http_listen`. What the built-in front does not answer goes back to its own backends.
    pub async fn http(&self, mut request: Request<Body>) -> Response<Incoming> {
        if self.is_builtin() {
            let us = app(SELF).to_string().parse().unwrap();
            request.headers_mut().insert("x-dstack-target-app", us);
        }
        exchange(TcpStream::connect(self.http).await.unwrap(), request).await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Self::Nginx(child) = self {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

fn start_nginx(desired: &Desired, state: &StateDir) -> Engine {
    write(desired, &state.current());
    let argv = &desired.programs[&Program::Nginx].argv;
    let mut nginx = Command::new(&argv[0]);
    Engine::Nginx(nginx.args(&argv[1..]).stdin(Stdio::null()).spawn().unwrap())
}

/// With its local and its peers' listener. It reaches every app at itself.
async fn start_builtin(settings: MeshSettings, state: &StateDir) -> (Engine, SocketAddr, SocketAddr) {
    let (identity, receiver) = watch::channel(Some(read_identity(state)));
    let mesh = Mesh::start(settings, receiver).unwrap();
    let addrs = mesh.local_addrs().await;
    assert_eq!(addrs.auth, None, "nobody asks it");
    let (http, https) = (addrs.http.unwrap(), addrs.https.unwrap());
    let gateway = Some(Gateway::Fixed(https.into()));
    let settings = MeshSettings::clone(&mesh.settings());
    mesh.update(MeshSettings { gateway, ..settings }).await.unwrap();
    (Engine::Builtin { mesh, identity }, http, https)
}

/// What is in the files that nginx.conf refers to.
fn read_identity(state: &StateDir) -> Arc<Identity> {
    let dir = state.identity().join("000001");
    let pem = |name: &str| CertificateDer::pem_file_iter(dir.join(name)).unwrap();
    Arc::new(Identity {
        key: PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(),
        chain: pem("chain.pem").map(Result::unwrap).collect(),
        root: pem("ca.pem").next().unwrap().unwrap(),
        app_id: Some(app(SELF)),
        instance_id: None,
        not_after: SystemTime::now() + Duration::from_secs(3600),
        dir,
    })
}

/// A TLS client that shows this chain, right or wrong, and takes any server.
pub fn client(
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = provider.key_provider.load_private_key(key).unwrap();
            let key = CertifiedKey::new(chain, key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    config
}

/// The client's certificate.
#[derive(Clone, Copy)]
pub enum Who {
    Nobody,
    /// Of the same KMS.
    App,
    /// Of another KMS.
    Stranger,
}

/// Sends one request and gives the response, whose body is still to come.
pub async fn exchange<S>(stream: S, request: Request<Body>) -> Response<Incoming>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

/// For requests over HTTP/2.
pub async fn http2<S>(stream: S) -> SendRequest<Body>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

pub fn get(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(body("")).unwrap()
}

pub async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Where a listener is reached from here.
fn reach(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => (std::net::Ipv6Addr::LOCALHOST, listen.port()).into(),
        false => listen,
    }
}

/// Of the moment; nothing holds it until a front does.
pub fn free_port() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The server's certificate is not what these tests are about.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![
            rustls::SignatureScheme::ECDSA_NISTP256_SHA256,
            rustls::SignatureScheme::ECDSA_NISTP384_SHA384,
        ]
    }
}
