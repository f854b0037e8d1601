//! One HTTP/1.1 exchange over one connection, for answers small enough to hold; with TLS where the URL says so.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use crate::{ratls, words};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the connection failed: {}", words::root_cause(.0))]
    Connection(#[from] hyper::Error),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    #[error(transparent)]
    Config(#[from] rustls::Error),
    #[error("TLS failed: {0}")]
    Handshake(io::Error),
}

/// Whose certificate is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust {
    /// One that this system trusts, for the name in the URL.
    System,
    /// Any; the caller judges what was shown.
    Anyone,
}

/// Why nothing came from a URL: a sentence without it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("there is no host in it")]
    NoHost,
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What `url` answers, and the chain that was shown, as [`secured`] has it.
pub(crate) async fn get(
    url: &Url,
    trust: Trust,
    limit: usize,
) -> Result<(StatusCode, Bytes, Vec<CertificateDer<'static>>), GetError> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(GetError::NoHost);
    };
    let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(header::ACCEPT, "application/json")
        .body(Full::default())?;
    let tcp = TcpStream::connect(format!("{host}:{port}")).await?;
    let (stream, chain) = secured(url, tcp, trust).await?;
    let (status, body) = exchange(stream, request, limit).await?;
    Ok((status, body, chain))
}

/// `tcp` with TLS where `url` says https, and the chain that was shown: leaf first, empty without TLS.
pub(crate) async fn secured(
    url: &Url,
    tcp: TcpStream,
    trust: Trust,
) -> Result<(Box<dyn Stream>, Vec<CertificateDer<'static>>), TlsError> {
    if url.scheme() != "https" {
        return Ok((Box::new(tcp), Vec::new()));
    }
    let host = url.host_str().unwrap_or_default();
    let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned())?;
    let config = match trust {
        Trust::Anyone => ratls::client(Arc::new(ratls::AnyServer))?,
        Trust::System => ClientConfig::builder_with_provider(Arc::clone(ratls::provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(system_roots()),
    };
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let tls = connector.connect(name, tcp).await.map_err(TlsError::Handshake)?;
    let chain = tls.get_ref().1.peer_certificates();
    let chain = chain.unwrap_or_default().iter().map(|it| it.clone().into_owned());
    let chain = chain.collect();
    Ok((Box::new(tls), chain))
}

/// Whom this system trusts.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Sends `request` and reads the answer, of which at most `limit` bytes are taken.
///
/// Nothing is spawned: dropping the future closes the connection.
pub(crate) async fn exchange<I>(
    io: I,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(StatusCode, Bytes), ExchangeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = exchange_whole(io, request, limit).await?;
    Ok((response.status(), response.into_body()))
}

/// [`exchange`], with the headers of the answer.
pub(crate) async fn exchange_whole<I>(
    io: I,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, ExchangeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
            Err(e) if e.is::<LengthLimitError>() => Err(ExchangeError::TooLong(limit)),
            Err(e) => Err(ExchangeError::BrokeOff(e.to_string())),
        }
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        result = &mut answer => result,
        // The connection may end first with the answer already handed over.
        _ = connection => answer.await,
    }
}
