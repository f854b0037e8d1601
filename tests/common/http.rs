//! A small HTTP client: one request, one fresh connection, everything of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Body;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// No single exchange in these tests takes longer, the gigabyte ones excepted: they do without it.
const PATIENCE: Duration = Duration::from_secs(30);

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub async fn read<B>(response: Response<B>) -> Result<Self, Error>
    where
        B: Body,
        B::Error: Into<Error>,
    {
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(Into::into)?;
        let trailers = body.trailers().cloned();
        Ok(Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Null when the body is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        let values = self.headers.get_all(name).into_iter();
        values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    }
}

pub fn get(path: &str) -> Request<Empty<Bytes>> {
    request(Method::GET, path, Empty::new())
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    request(Method::POST, path, Full::new(body.into()))
}

pub fn request<B>(method: Method, path: &str, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("a path");
    request
}

/// Adds headers where a request is made.
pub trait With: Sized {
    fn with(self, name: &'static str, value: &str) -> Self;

    /// For which app it is.
    fn to_app(self, app: &str) -> Self {
        self.with("x-dstack-target-app", app)
    }
}

impl<B> With for Request<B> {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut()
            .append(name, value.parse().expect("a header value"));
        self
    }
}

/// Sends over HTTP/1.1 on a new TCP connection.
pub async fn send<B>(addr: SocketAddr, request: Request<B>) -> Result<Reply, Error>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    send_on(TcpStream::connect(addr).await?, request).await
}

/// Sends over HTTP/1.1 on `stream`, and reads the whole answer.
pub async fn send_on<S, B>(stream: S, request: Request<B>) -> Result<Reply, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    let exchange = async { Reply::read(open(stream, request).await?).await };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Sends over HTTP/1.1 on `stream`, and returns the head with a body still to be read.
pub async fn open<S, B>(stream: S, mut request: Request<B>) -> Result<Response<hyper::body::Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    request
        .headers_mut()
        .entry("host")
        .or_insert(hyper::header::HeaderValue::from_static("app.local"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(request).await?)
}

/// Sends over HTTP/2 (no upgrade, no TLS of its own).
pub async fn send_h2<S, B>(stream: S, request: Request<B>) -> Result<Reply, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    let exchange = async { Reply::read(open_h2(stream, request).await?).await };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Sends over HTTP/2 on `stream`, and returns the head with a body still to be read.
pub async fn open_h2<S, B>(stream: S, request: Request<B>) -> Result<Response<hyper::body::Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Error>,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Writes exactly `bytes` and reads until the other side closes: for requests no client library would make.
pub async fn raw<S>(mut stream: S, bytes: impl AsRef<[u8]>) -> Result<String, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        stream.write_all(bytes.as_ref()).await?;
        let mut answer = Vec::new();
        // A peer that ends TLS without a goodbye has still said all it wanted to.
        match stream.read_to_end(&mut answer).await {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e.into()),
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}
