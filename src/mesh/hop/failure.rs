//! Why a call did not reach its target: the sentence for a person and the code for a program.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::request_id;
use crate::codes::Code;
use crate::mesh::reply::{self, Body};
use crate::names::HostPort;
use crate::ratls::{ChainError, PeerVerifier};

/// Who is at the far end of a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mesh) enum Far {
    Target,
    Agent,
    Backend,
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Target => "the target app",
            Self::Agent => "the guest agent",
            Self::Backend => "the backend",
        })
    }
}

/// `grpc-message` is percent-encoded.
const ESCAPED: AsciiSet = CONTROLS.add(b'%');

/// Each variant names the hop that failed. None quotes what the caller or a peer sent.
#[derive(Debug, thiserror::Error)]
pub(in crate::mesh) enum Failure {
    #[error("{0}")]
    BadTarget(&'static str),
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the request has more headers than limits.headers allows")]
    TooManyHeaders,
    #[error("CONNECT is not served here; name the target in x-dstack-target-app instead")]
    Connect,
    #[error(
        "the gateway's domain is not known yet; set dstack.gateway_domain, or see `dstack-vpc status` for why it could not be detected"
    )]
    GatewayUnknown,
    #[error("this machine has no certificate yet; see `dstack-vpc status` for why the guest agent gave none")]
    NoIdentity,
    #[error(
        "the address of {at} cannot be looked up: {cause}; check dstack.gateway_domain and the machine's DNS"
    )]
    Dns { at: HostPort, cause: io::Error },
    #[error("{at} cannot be reached: {cause}; check that it runs and that dstack.gateway_domain is right")]
    Unreachable { at: HostPort, cause: io::Error },
    #[error("{at} did not complete the connection within {} s; check that the target app runs and listens on that port", .after.as_secs_f32())]
    ConnectTimeout { at: HostPort, after: Duration },
    #[error(
        "{at} closed the connection during the TLS handshake; the gateway does that when no instance of the target app runs or none listens on that port"
    )]
    TlsClosed { at: HostPort },
    #[error("the TLS handshake with {at} failed: {cause}")]
    Tls { at: HostPort, cause: rustls::Error },
    #[error("the peer behind {at} did not prove to be the target app: {cause}")]
    Identity { at: HostPort, cause: ChainError },
    #[error("{hop} closed the connection before it answered; the request may have been carried out")]
    PeerClosed { hop: Far },
    #[error("{hop} sent something that is not a valid HTTP response")]
    BadResponse { hop: Far },
    #[error("{hop} did not answer within {} s of the request's end", .after.as_secs_f32())]
    ResponseTimeout { hop: Far, after: Duration },
    #[error("no guest agent was found; mount its socket into the container or set dstack.agent")]
    NoAgent,
    #[error("the guest agent cannot be reached: {0}; check that its socket is mounted and that it runs")]
    AgentUnreachable(io::Error),
    /// Whoever called is told nothing of where the backend is; the log is.
    #[error(
        "the backend cannot be reached: {0}; check that it runs and that its upstream in vpc.toml is right"
    )]
    Backend(io::Error),
    #[error("the request's own body broke off")]
    ClientGone,
    #[error("an error inside dstack-vpc; its log has the details")]
    Internal,
}

impl Failure {
    /// The stable name in replies and metrics.
    pub(in crate::mesh) fn code(&self) -> Code {
        match self {
            Self::BadTarget(_) => Code::BadTarget,
            Self::BadRequest(_) => Code::BadRequest,
            Self::TooManyHeaders => Code::TooManyHeaders,
            Self::Connect => Code::ConnectNotServed,
            Self::GatewayUnknown => Code::GatewayUnknown,
            Self::NoIdentity => Code::NoIdentity,
            Self::Dns { .. } => Code::Dns,
            Self::Unreachable { cause, .. } if cause.kind() == io::ErrorKind::ConnectionRefused => {
                Code::ConnectRefused
            }
            Self::Unreachable { .. } => Code::Unreachable,
            Self::ConnectTimeout { .. } => Code::ConnectTimeout,
            Self::TlsClosed { .. } | Self::Tls { .. } => Code::TlsFailed,
            Self::Identity { cause, .. } => cause.code(),
            Self::Backend(cause) if cause.kind() == io::ErrorKind::TimedOut => Code::BackendTimeout,
            Self::Backend(_)
            | Self::PeerClosed { hop: Far::Backend }
            | Self::BadResponse { hop: Far::Backend } => Code::BackendUnreachable,
            Self::ResponseTimeout {
                hop: Far::Backend, ..
            } => Code::BackendTimeout,
            Self::PeerClosed { .. } => Code::PeerClosed,
            Self::BadResponse { .. } => Code::BadResponse,
            Self::ResponseTimeout { .. } => Code::ResponseTimeout,
            Self::NoAgent | Self::AgentUnreachable(_) => Code::AgentUnavailable,
            Self::ClientGone => Code::ClientGone,
            Self::Internal => Code::Internal,
        }
    }

    /// Where it failed: the stable name in replies.
    fn hop(&self) -> &'static str {
        match self {
            Self::BadTarget(_)
            | Self::BadRequest(_)
            | Self::TooManyHeaders
            | Self::Connect
            | Self::ClientGone => "caller",
            Self::GatewayUnknown | Self::NoIdentity | Self::Internal => "proxy",
            Self::Dns { .. }
            | Self::Unreachable { .. }
            | Self::ConnectTimeout { .. }
            | Self::TlsClosed { .. } => "gateway",
            Self::Tls { .. } | Self::Identity { .. } => "target",
            Self::PeerClosed { hop } | Self::BadResponse { hop } | Self::ResponseTimeout { hop, .. } => {
                match hop {
                    Far::Target => "target",
                    Far::Agent => "agent",
                    Far::Backend => "backend",
                }
            }
            Self::NoAgent | Self::AgentUnreachable(_) => "agent",
            Self::Backend(_) => "backend",
        }
    }

    /// The answer to the request of that id.
    pub(in crate::mesh) fn reply(&self, id: Option<&HeaderValue>) -> Response<Body> {
        let (status, code, hop) = (self.status(), self.code().name(), self.hop());
        let request_id = id.and_then(|id| id.to_str().ok());
        if status.is_server_error() {
            tracing::info!(code, hop, request_id, "{self}");
        }
        let words = serde_json::json!({
            "error": self.to_string(),
            "code": code,
            "hop": hop,
            "request_id": request_id,
        });
        let mut response = reply::json(status, &words);
        if let Some(id) = id {
            response.headers_mut().insert(request_id::NAME, id.clone());
        }
        response
    }

    fn status(&self) -> StatusCode {
        let status = self
            .code()
            .status()
            .and_then(|status| StatusCode::from_u16(status).ok());
        status.unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// The answer to a gRPC client: its status in headers and nothing else ("Trailers-Only" in the gRPC project's
    /// doc/PROTOCOL-HTTP2.md), where another proxy's JSON would be taken for a broken message.
    pub(in crate::mesh) fn as_grpc(&self, id: &HeaderValue) -> Response<Body> {
        const INVALID_ARGUMENT: u16 = 3;
        const INTERNAL: u16 = 13;
        const UNAVAILABLE: u16 = 14;
        let status = match self {
            Self::Internal => INTERNAL,
            _ if self.status().is_client_error() => INVALID_ARGUMENT,
            _ => UNAVAILABLE,
        };
        let message = format!("{self} ({})", self.code().name());
        let message = utf8_percent_encode(&message, &ESCAPED).to_string();
        let mut response = self.reply(Some(id)).map(|_| Body::Own(None));
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", status.into());
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert("grpc-message", message);
        }
        response
    }

    /// What a failed handshake with `at` means.
    pub(in crate::mesh) fn handshake(at: &HostPort, error: io::Error) -> Self {
        let at = at.clone();
        match error.downcast::<rustls::Error>() {
            Ok(error) => match PeerVerifier::cause(&error) {
                Some(cause) => Self::Identity {
                    at,
                    cause: cause.clone(),
                },
                None => Self::Tls { at, cause: error },
            },
            Err(error) if is_close(error.kind()) => Self::TlsClosed { at },
            Err(cause) => Self::Unreachable { at, cause },
        }
    }

    /// What an error on an established connection to `hop` means.
    pub(in crate::mesh) fn exchange(hop: Far, at: Option<&HostPort>, error: &hyper::Error) -> Self {
        if error.is_user() {
            // hyper's error holds the body's, which holds the decoder's.
            let decoder = error.source().and_then(std::error::Error::source);
            let kind = decoder.and_then(|e| e.downcast_ref()).map(io::Error::kind);
            return match kind {
                Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
                    Self::BadRequest("the request's body is not chunked as it should be")
                }
                _ => Self::ClientGone,
            };
        }
        if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
            return Self::BadResponse { hop };
        }
        // TLS 1.3 tells a client that its certificate was refused only after the handshake.
        let io = error.source().and_then(|e| e.downcast_ref::<io::Error>());
        let tls = io
            .and_then(io::Error::get_ref)
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match (tls, at) {
            (Some(cause), Some(at)) => Self::Tls {
                at: at.clone(),
                cause: cause.clone(),
            },
            _ => Self::PeerClosed { hop },
        }
    }
}

fn is_close(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | BrokenPipe)
}
