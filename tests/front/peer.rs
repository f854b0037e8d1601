//! A machine that peers come to: nginx together with the auth service, or the built-in front, and a backend that counts
//! what it is told; and how they come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dstack_vpc::mesh::MeshSettings;
use dstack_vpc::spec::AllowedApps;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use rustls::{ClientConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::fronts::{Body, Front, Kind, body, client, exchange, get, http2};
use crate::kit::pki::{Shape, Signed, app, id};
use crate::kit::{self, OurSide, THEM};
use crate::rendered::backend;

pub(crate) const TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;
pub(crate) const TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;
pub(crate) const HTTP1: &[u8] = b"http/1.1";
pub(crate) const HTTP2: &[u8] = b"h2";

/// A machine that believes one root and lets one app in.
pub(crate) struct Serving {
    pub(crate) front: Front,
    /// With the auth service that nginx asks.
    pub(crate) us: OurSide,
    pub(crate) backend: Told,
}

impl Serving {
    pub(crate) async fn start(kind: Kind, root: &Signed) -> Self {
        Self::believing(kind, &root.pem).await
    }

    /// `root`: in PEM.
    pub(crate) async fn believing(kind: Kind, root: &str) -> Self {
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
    pub(crate) async fn allow(&self, apps: &[u8]) {
        let mesh = self.front.mesh().unwrap_or(&self.us.mesh);
        let settings = MeshSettings {
            backends: allowing(apps).backends,
            ..MeshSettings::clone(&mesh.settings())
        };
        mesh.update(settings).await.unwrap();
    }

    pub(crate) async fn connect(&self, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
        self.front
            .connect(Arc::clone(config), "app.internal")
            .await
            .unwrap()
    }

    /// The status of an answer, if a connection comes about at all.
    pub(crate) async fn attempt(&self, config: &Arc<ClientConfig>) -> Option<u16> {
        let connecting = self.front.connect(Arc::clone(config), "app.internal");
        let mut stream = connecting.await.ok()?;
        let request = b"GET / HTTP/1.1\r\nhost: app.internal\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let answer = read_all(stream).await;
        (!answer.is_empty()).then(|| status(&answer))
    }

    /// What raw bytes are answered with, until the front closes.
    pub(crate) async fn raw(&self, config: &Arc<ClientConfig>, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect(config).await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(stream).await
    }
}

/// Who may call the backend `default`; `closed` is for nobody here.
pub(crate) fn allowing(apps: &[u8]) -> MeshSettings {
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
pub(crate) struct Told {
    pub(crate) addr: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Told {
    pub(crate) async fn start() -> Self {
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
    pub(crate) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.bytes.lock().unwrap());
        String::from_utf8_lossy(&bytes).to_lowercase()
    }
}

pub(crate) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) fn shown(leaf: &Signed, ca: &Signed) -> Option<Shown> {
    Some((vec![leaf.der.clone(), ca.der.clone()], leaf.key()))
}

pub(crate) fn over_http1(shown: Option<Shown>) -> Arc<ClientConfig> {
    Arc::new(client(shown, &[TLS13], &[HTTP1]))
}

pub(crate) fn genuine(root: &Signed) -> Arc<ClientConfig> {
    let (leaf, ca) = app(root, id(THEM));
    over_http1(shown(&leaf, &ca))
}

pub(crate) async fn read_all(mut stream: TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    // TLS may end without a goodbye; what was said is all there is.
    let _ = read.await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// One GET over the protocol that was agreed on.
pub(crate) async fn ask(stream: TlsStream<TcpStream>, path: &str) -> Response<hyper::body::Incoming> {
    if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
        return exchange(stream, get("app.internal", path)).await;
    }
    ask_http2(&mut http2(stream).await, path).await
}

pub(crate) async fn ask_http2(sender: &mut SendRequest<Body>, path: &str) -> Response<hyper::body::Incoming> {
    let request = Request::get(format!("https://app.internal{path}"))
        .body(body(""))
        .unwrap();
    sender.send_request(request).await.unwrap()
}
