//! What stands behind a machine's `https_listen`: a server that tells what it saw, and can do what
//! proxies get wrong.
//!
//! | path | answers |
//! |---|---|
//! | `/status/<code>` | that status |
//! | `/cookies` | two `Set-Cookie` headers |
//! | `/download/<bytes>` | so many bytes |
//! | `/trailers` | a body, then the trailers `grpc-status: 0` and `x-seen` (the request's `x-sum` trailer) |
//! | `/ws` | WebSocket echo |
//! | `/hold` | its head and `first,` at once, `last` when [`Backend::release`] is called |
//! | any other | JSON: backend, method, path, headers, bytes of the body |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dstack_vpc::agent::dev::Issued;
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::tls::acceptor;

type Body = BoxBody<Bytes, Infallible>;

/// Speaks HTTP/1.1 and HTTP/2 without TLS.
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: AbortHandle,
}

struct Shared {
    name: &'static str,
    seen: Mutex<Vec<String>>,
    release: Semaphore,
}

impl Backend {
    /// On a free port of 127.0.0.1; `name` stands in its answers.
    pub async fn start(name: &'static str) -> Self {
        Self::on("127.0.0.1:0".parse().expect("an address"), name).await
    }

    pub async fn on(addr: SocketAddr, name: &'static str) -> Self {
        Self::serve(addr, name, None).await
    }

    /// A peer of its own, without nginx in front: shows `identity` and speaks HTTP/1.1.
    pub async fn as_peer(identity: &Issued, name: &'static str) -> Self {
        let addr = "127.0.0.1:0".parse().expect("an address");
        Self::serve(addr, name, Some(acceptor(identity))).await
    }

    async fn serve(addr: SocketAddr, name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        Self::behind(TcpListener::bind(addr).await.expect("backend port"), name, tls)
    }

    /// On a listener that somebody else made, perhaps in another network.
    pub fn behind(listener: TcpListener, name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let addr = listener.local_addr().expect("backend address");
        let shared = Arc::new(Shared {
            name,
            seen: Mutex::default(),
            release: Semaphore::new(0),
        });
        let server = tokio::spawn(serve(listener, tls, shared.clone())).abort_handle();
        Self { addr, shared, server }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `METHOD /path` of each request that came here, in order.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("seen").clone()
    }

    /// Lets one `/hold` go on.
    pub fn release(&self) {
        self.shared.release.add_permits(1);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Owns the connections: they end with it.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, tls) = (shared.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => converse(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, shared).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(shared.clone(), request));
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // How a client ends its connection is its own affair.
    let _ = server
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let line = format!("{} {}", request.method(), request.uri());
    shared.seen.lock().expect("seen").push(line);
    Ok(match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["status", code] => {
            let mut response = text(format!("status {code}\n"));
            *response.status_mut() = code.parse().expect("a status");
            response
        }
        ["cookies"] => {
            let mut response = text("two cookies\n");
            for cookie in ["a=1; Path=/", "b=2; Path=/"] {
                response
                    .headers_mut()
                    .append("set-cookie", cookie.parse().expect("a cookie"));
            }
            response
        }
        ["download", bytes] => download(bytes.parse().expect("a number of bytes")),
        ["trailers"] => trailers(request).await?,
        ["ws"] => websocket(request),
        ["hold"] => hold(shared),
        _ => describe(shared.name, request).await?,
    })
}

fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(body.into()).boxed())
}

async fn describe(name: &str, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            [
                name.as_str().to_owned(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ]
        })
        .collect();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let mut bytes = 0;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    let seen = json!({"backend": name, "method": method, "path": path, "headers": headers, "bytes": bytes});
    let mut response = text(seen.to_string());
    let json = "application/json".parse().expect("a content type");
    response.headers_mut().insert("content-type", json);
    Ok(response)
}

fn download(bytes: usize) -> Response<Body> {
    const CHUNK: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
    let chunks = stream::unfold(bytes, |left| async move {
        let size = left.min(CHUNK.len());
        (size > 0).then(|| (Ok(Frame::data(CHUNK.slice(..size))), left - size))
    });
    Response::new(BodyExt::boxed(StreamBody::new(chunks)))
}

async fn trailers(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let content_type = request.headers().get("content-type").cloned();
    let request = request.into_body().collect().await?;
    let sum = request.trailers().and_then(|t| t.get("x-sum")).cloned();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a trailer"));
    trailers.insert("x-seen", sum.unwrap_or("nothing".parse().expect("a trailer")));
    let frames = [Ok(Frame::data(request.to_bytes())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(frames))));
    // Over HTTP/1.1 trailers have to be announced.
    let announced = "grpc-status, x-seen".parse().expect("names");
    response.headers_mut().insert("trailer", announced);
    if let Some(content_type) = content_type {
        response.headers_mut().insert("content-type", content_type);
    }
    Ok(response)
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        let mut response = text("not a WebSocket\n");
        *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
        return response;
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut response = text("");
    *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", "upgrade".parse().expect("a header"));
    headers.insert("upgrade", "websocket".parse().expect("a header"));
    let accept = derive_accept_key(key.as_bytes());
    headers.insert("sec-websocket-accept", accept.parse().expect("a header"));
    response
}

fn hold(shared: Arc<Shared>) -> Response<Body> {
    let last = stream::once(async move {
        shared.release.acquire().await.expect("never closed").forget();
        Ok(Frame::data(Bytes::from_static(b"last")))
    });
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"first,")))]);
    Response::new(BodyExt::boxed(StreamBody::new(first.chain(last))))
}
