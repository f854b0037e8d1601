//! The far sides of the mesh: peers that speak real TLS, a guest agent, and clients.
#![allow(dead_code, unreachable_pub)]

pub mod forgeries;
pub mod openssl;
pub mod pki;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dstack_vpc::identity::Identity;
use dstack_vpc::mesh::{Mesh, MeshSettings};
use dstack_vpc::names::AppId;
use dstack_vpc::ratls::{ClientVerifier, provider};
use dstack_vpc::spec::{Gateway, Spec};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pki::{Signed, app, id};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// Our own app in all tests, and the app that is called.
pub const US: u8 = 0x11;
pub const THEM: u8 = 0xaa;

pub fn them() -> String {
    id(THEM).to_string()
}

pub fn identity(root: &Signed, whose: AppId) -> Arc<Identity> {
    let (leaf, ca) = app(root, whose);
    Arc::new(Identity {
        dir: "/nowhere".into(),
        key: leaf.key(),
        chain: vec![leaf.der.clone(), ca.der],
        root: root.der.clone(),
        app_id: Some(whose),
        instance_id: None,
        not_after: SystemTime::now() + Duration::from_secs(3600),
    })
}

pub fn settings(gateway: Option<Gateway>) -> MeshSettings {
    MeshSettings {
        client_listen: "127.0.0.1:0".parse().unwrap(),
        auth_listen: "127.0.0.1:0".parse().unwrap(),
        front: None,
        gateway,
        agent: None,
        tcp_backends: BTreeMap::new(),
        forwards: BTreeMap::new(),
        only_ipv6: BTreeSet::new(),
        backends: BTreeMap::new(),
        connect_timeout: Duration::from_secs(3),
        response_timeout: Duration::from_secs(3),
        idle_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_millis(200),
        agent_timeout: Duration::from_secs(3),
        limits: Spec::default().limits,
        access_log: false,
    }
}

pub fn fixed(addr: SocketAddr) -> Option<Gateway> {
    Some(Gateway::Fixed(addr.into()))
}

/// As good as any, and free until it is taken.
pub async fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// A mesh of our own app that reaches every target at one peer.
pub struct OurSide {
    pub mesh: Mesh,
    pub client: SocketAddr,
    pub auth: SocketAddr,
    pub identity: watch::Sender<Option<Arc<Identity>>>,
}

impl OurSide {
    pub async fn start(root: &Signed, settings: MeshSettings) -> Self {
        let (sender, receiver) = watch::channel(Some(identity(root, id(US))));
        let mesh = Mesh::start(settings, receiver).unwrap();
        let addrs = mesh.local_addrs().await;
        Self {
            mesh,
            client: addrs.client,
            auth: addrs.auth.unwrap(),
            identity: sender,
        }
    }
}

/// What a peer shows in the handshake.
pub struct Certificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub root: CertificateDer<'static>,
}

impl Certificate {
    pub fn of(root: &Signed, whose: AppId) -> Self {
        let (leaf, ca) = app(root, whose);
        Self::new(root, &leaf, &[&ca])
    }

    pub fn new(root: &Signed, leaf: &Signed, rest: &[&Signed]) -> Self {
        let rest = rest.iter().map(|c| c.der.clone());
        Self {
            chain: std::iter::once(leaf.der.clone()).chain(rest).collect(),
            key: leaf.key(),
            root: root.der.clone(),
        }
    }

    pub fn acceptor(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[&str],
    ) -> TlsAcceptor {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(Arc::new(ClientVerifier::new(self.root.clone())))
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A listening peer; it ends with the test's runtime.
pub struct Peer {
    pub addr: SocketAddr,
    /// TLS connections that were established.
    pub connections: Arc<AtomicUsize>,
    /// Plain bytes that arrived, where the peer is a script.
    pub seen: Arc<Mutex<Vec<u8>>>,
}

impl Peer {
    pub fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn gateway(&self) -> Option<Gateway> {
        fixed(self.addr)
    }

    /// Hands each TLS connection to `script`.
    pub async fn scripted<F, S>(acceptor: TlsAcceptor, script: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, usize) -> S + Clone + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        Self::scripted_at("127.0.0.1:0", acceptor, script).await
    }

    /// The app that is called, as all clients take it to be.
    pub async fn them<F, S>(root: &Signed, script: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, usize) -> S + Clone + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let acceptor = Certificate::of(root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &[]);
        Self::scripted(acceptor, script).await
    }

    pub async fn scripted_at<F, S>(listen: &str, acceptor: TlsAcceptor, script: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, usize) -> S + Clone + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(listen).await.unwrap();
        let peer = Self {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            seen: Arc::default(),
        };
        let connections = Arc::clone(&peer.connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (acceptor, script) = (acceptor.clone(), script.clone());
                let connections = Arc::clone(&connections);
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let number = connections.fetch_add(1, Ordering::SeqCst);
                        script(stream, number).await;
                    }
                });
            }
        });
        peer
    }

    /// Serves HTTP/1.1 and, where the client asks for it, HTTP/2.
    pub async fn serve<F, S>(acceptor: TlsAcceptor, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> S + Clone + Send + Sync + 'static,
        S: Future<Output = Answer> + Send + 'static,
    {
        Self::scripted(acceptor, move |stream, _| {
            let handler = handler.clone();
            async move {
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await
    }
}

/// At once: TLS keeps what is not flushed.
pub async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream.flush().await.unwrap();
}

pub fn answer(body: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed())
}

/// A peer of the right app that says what it got, but for the request's id, which is another one each time.
pub async fn echo_head(root: &Signed) -> Peer {
    let acceptor = Certificate::of(root, id(THEM)).acceptor(rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    Peer::serve(acceptor, |request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let mut lines = vec![format!("{} {} {:?}", parts.method, parts.uri, parts.version)];
        lines.extend(
            parts
                .headers
                .iter()
                .filter(|(name, _)| *name != "x-request-id")
                .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())),
        );
        lines.push(String::new());
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        lines.push(String::from_utf8_lossy(&body).into_owned());
        answer(lines.join("\n"))
    })
    .await
}

/// A whole HTTP/1.1 response as it stood on the wire.
#[derive(Debug)]
pub struct Wire {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Wire {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        matching.map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or("-").to_owned()
    }
}

/// A client that writes bytes and reads responses without help.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// `None` at the end of the connection.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..end + 2).collect::<Vec<_>>();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    pub async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        Some(self.buffer.drain(..count).collect())
    }

    pub async fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let status = self.line().await?;
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, self.fields().await?))
    }

    async fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            match line.split_once(':') {
                Some((name, value)) => fields.push((name.to_owned(), value.trim().to_owned())),
                None => return Some(fields),
            }
        }
    }

    /// The next final response; `None` when it did not arrive whole.
    pub async fn response(&mut self, to_head: bool) -> Option<Wire> {
        let (status, headers) = loop {
            let head = self.head().await?;
            if head.0 >= 200 || head.0 == 101 {
                break head;
            }
        };
        let mut wire = Wire {
            status,
            headers,
            body: Vec::new(),
            trailers: Vec::new(),
        };
        if to_head || matches!(status, 101 | 204 | 304) {
            return Some(wire);
        }
        if wire.all("transfer-encoding") == ["chunked"] {
            loop {
                let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
                if size == 0 {
                    wire.trailers = self.fields().await?;
                    return Some(wire);
                }
                wire.body.extend(self.bytes(size).await?);
                self.bytes(2).await?;
            }
        }
        match wire.all("content-length").first() {
            Some(length) => wire.body = self.bytes(length.parse().unwrap()).await?,
            None => {
                while self.more().await.is_some() {}
                wire.body = std::mem::take(&mut self.buffer);
            }
        }
        Some(wire)
    }

    pub async fn call(&mut self, request: &str) -> Wire {
        self.send(request).await;
        let to_head = request.starts_with("HEAD");
        self.response(to_head)
            .await
            .expect("the connection ended before the response")
    }
}

/// One request on a connection of its own.
pub async fn call(addr: SocketAddr, request: &str) -> Wire {
    Client::connect(addr).await.call(request).await
}

/// `GET path` for the other app, with more headers (each ending in CRLF).
pub fn get(path: &str, more: &str) -> String {
    request("GET", path, more)
}

pub fn request(method: &str, path: &str, more: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: service.internal\r\nx-dstack-target-app: {}\r\n{more}\r\n",
        them()
    )
}

/// The head of the next request, up to its empty line; `None` at the end of the connection.
pub async fn read_head(stream: &mut TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}
