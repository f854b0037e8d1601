//! From a name to a connection: DNS, TCP, TLS.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::{ServerName, UnixTime};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Failure;
use crate::mesh::socket::Socket;
use crate::mesh::tally::Meter;
use crate::names::{Host, HostPort};
use crate::ratls::still_valid;
use crate::spec::AgentAddr;

/// How long one address has before the next is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// A peer whose machine vanished sends nothing, not even an end: a download would wait for ever.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// An address and the name that is asked for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mesh) struct Endpoint {
    pub(in crate::mesh) at: HostPort,
    pub(in crate::mesh) name: ServerName<'static>,
    /// Its certificate has to prove whose it is.
    pub(in crate::mesh) proves: bool,
}

/// A connection after its handshake. In a box, because it is handed on from future to future, and each keeps room for what
/// it was handed.
pub(in crate::mesh) type Connected = Box<TlsStream<Socket>>;

/// A connection to whatever is on the other side.
pub(in crate::mesh) enum Stream {
    Tls(Connected),
    Tcp(Socket),
    Unix(UnixStream),
}

/// Opens a TLS connection as [`tls`] does, and counts how that ended.
pub(in crate::mesh) async fn peer(
    endpoint: &Endpoint,
    config: &Arc<ClientConfig>,
    meter: &Meter,
    deadline: Instant,
    patience: Duration,
) -> Result<Connected, Failure> {
    let handshake = meter.handshake();
    let connected = tls(endpoint, config, deadline, patience).await;
    handshake.ended(match &connected {
        Ok(stream) if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) => "resumed",
        Ok(_) => "full",
        Err(failure) => failure.code().name(),
    });
    connected
}

/// Opens a TLS connection by `deadline`; `patience` is how long that was. When this returns, the peer has proved to be
/// whom `config` demands.
pub(in crate::mesh) async fn tls(
    endpoint: &Endpoint,
    config: &Arc<ClientConfig>,
    deadline: Instant,
    patience: Duration,
) -> Result<Connected, Failure> {
    let connecting = timeout_at(deadline, shake_hands(endpoint, Arc::clone(config)));
    connecting.await.unwrap_or_else(|_| {
        Err(Failure::ConnectTimeout {
            at: endpoint.at.clone(),
            after: patience,
        })
    })
}

async fn shake_hands(endpoint: &Endpoint, config: Arc<ClientConfig>) -> Result<Connected, Failure> {
    let at = &endpoint.at;
    let tcp = tcp(at).await?;
    let connector = TlsConnector::from(config);
    let connected = connector.connect(endpoint.name.clone(), Socket(tcp)).await;
    let stream = connected.map_err(|error| Failure::handshake(at, error))?;
    if endpoint.proves && stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
        // The verifier is not asked again. Identity and root are the session's own; time went on.
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        still_valid(shown, UnixTime::now()).map_err(|cause| Failure::Identity {
            at: at.clone(),
            cause,
        })?;
    }
    Ok(Box::new(stream))
}

/// Opens a connection to the guest agent. By path each time: its socket is a new one after it restarts.
pub(in crate::mesh) async fn agent(addr: &AgentAddr) -> Result<Stream, Failure> {
    match addr {
        AgentAddr::Unix(path) => UnixStream::connect(path)
            .await
            .map(Stream::Unix)
            .map_err(Failure::AgentUnreachable),
        AgentAddr::Http(at) => tcp(at)
            .await
            .map(|tcp| Stream::Tcp(Socket(tcp)))
            .map_err(|failure| match failure {
                Failure::Dns { cause, .. } | Failure::Unreachable { cause, .. } => {
                    Failure::AgentUnreachable(cause)
                }
                other => other,
            }),
    }
}

/// Opens a connection to a backend.
pub(in crate::mesh) async fn backend(at: &HostPort) -> Result<Socket, Failure> {
    tcp(at).await.map(Socket).map_err(|failure| match failure {
        Failure::Dns { cause, .. } | Failure::Unreachable { cause, .. } => Failure::Backend(cause),
        other => other,
    })
}

async fn tcp(at: &HostPort) -> Result<TcpStream, Failure> {
    let addresses = resolve(at).await.map_err(|cause| Failure::Dns {
        at: at.clone(),
        cause,
    })?;
    let stream = first_that_answers(&addresses).await;
    let stream = stream.and_then(|stream| {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&KEEP_ALIVE)?;
        Ok(stream)
    });
    stream.map_err(|cause| Failure::Unreachable {
        at: at.clone(),
        cause,
    })
}

/// All addresses, the families taking turns, so that a broken one costs no more than [`STAGGER`].
async fn resolve(at: &HostPort) -> io::Result<Vec<SocketAddr>> {
    let name = match &at.host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, at.port)]),
        Host::Name(name) => name,
    };
    // RFC 6761 §6.3: these names are loopback, and no resolver need be asked.
    if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
        return Ok(vec![
            (Ipv4Addr::LOCALHOST, at.port).into(),
            (Ipv6Addr::LOCALHOST, at.port).into(),
        ]);
    }
    let (v6, v4): (Vec<_>, Vec<_>) = lookup_host((name.as_str(), at.port))
        .await?
        .partition(SocketAddr::is_ipv6);
    let rounds = v6.len().max(v4.len());
    Ok((0..rounds)
        .flat_map(|round| [v6.get(round), v4.get(round)])
        .flatten()
        .copied()
        .collect())
}

async fn first_that_answers(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        attempts.extend(waiting.next().map(|address| TcpStream::connect(*address)));
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
