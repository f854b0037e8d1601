//! The auth service: nginx asks it, for each inbound request, who the caller is and whether the backend lets it in.
//!
//! nginx verified the chain in the TLS handshake and says so in `x-client-verify`; it can hand over the leaf only.
//! The listener must be reachable by nginx alone: whoever can set these headers can name any app.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::MeshSettings;
use super::reply::{self, Body};
use super::tally::{Decisions, Pen};
use crate::codes::Code;
use crate::names::{AppId, BackendName};
use crate::ratls;
use crate::spec::AllowedApps;

const CERT: HeaderName = HeaderName::from_static("x-client-cert");
const VERIFY: HeaderName = HeaderName::from_static("x-client-verify");
const BACKEND: HeaderName = HeaderName::from_static("x-dstack-backend");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const APP_ID: HeaderName = HeaderName::from_static("x-dstack-app-id");

/// Escaped, in bytes. A leaf of the KMS is 1 to 3 KiB, with a quote inside 20.
const MAX_CERT: usize = 64 * 1024;
/// Certificates remembered by each worker; the same few come again and again.
const REMEMBERED: usize = 128;

/// Reads certificates, and remembers them by the exact bytes of their header.
pub(super) struct Auth {
    known: HashMap<Box<[u8]>, Caller>,
    pen: Pen,
    tallies: HashMap<BackendName, Arc<Decisions>>,
    /// About requests that are for no backend, or for one that is not there.
    others: [Arc<Decisions>; 2],
}

/// What a certificate says. Whether it is valid now and let in is asked for each request.
#[derive(Clone, Copy)]
struct Caller {
    app_id: AppId,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Denied {
    #[error("no client certificate; connect with the certificate that the guest agent issues to the app")]
    NoCertificate,
    #[error(
        "the client certificate does not chain to the KMS root of this machine; both apps must use the same KMS"
    )]
    NotVerified,
    #[error("the header {0} must be there exactly once")]
    Repeated(HeaderName),
    #[error("the client certificate is not one URL-escaped PEM certificate of at most {MAX_CERT} bytes")]
    Unreadable,
    #[error("the client certificate is not valid at this time; its owner must renew it, or a clock is wrong")]
    OutOfTime,
    #[error("the client certificate cannot be used: {0}")]
    Certificate(#[from] ratls::ChainError),
    #[error("the app {0} may not call this backend; add it to the backend's allowed_apps")]
    NotAllowed(AppId),
    #[error("there is no such backend in vpc.toml")]
    UnknownBackend,
}

impl Denied {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotAllowed(_) | Self::UnknownBackend => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoCertificate => Code::NoCertificate,
            Self::NotVerified => Code::UntrustedChain,
            Self::Repeated(_) | Self::Unreadable => Code::BadCertificate,
            Self::OutOfTime => Code::Expired,
            Self::Certificate(cause) => cause.code(),
            Self::NotAllowed(_) => Code::NotAllowed,
            Self::UnknownBackend => Code::UnknownBackend,
        }
    }
}

impl Auth {
    pub(super) fn new(pen: Pen) -> Self {
        Self {
            known: HashMap::new(),
            tallies: HashMap::new(),
            others: ["_none", "_unknown"].map(|name| pen.decisions(name)),
            pen,
        }
    }

    pub(super) fn answer<B>(&mut self, request: &Request<B>, settings: &MeshSettings) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/auth") => {}
            (_, "/health") => return reply::text("OK"),
            _ => {
                return reply::error(
                    StatusCode::NOT_FOUND,
                    Code::NotFound.name(),
                    "only /auth and /health are here",
                );
            }
        }
        let backend = backend(request.headers(), settings);
        let decisions = Arc::clone(self.decisions(&backend));
        match self.decide(request.headers(), backend, SystemTime::now()) {
            Ok(app_id) => {
                decisions.allowed.add(1);
                let mut response = reply::empty(StatusCode::OK);
                if let Ok(value) = HeaderValue::from_str(&app_id.to_string()) {
                    response.headers_mut().insert(APP_ID, value);
                }
                response
            }
            Err(denied) => {
                decisions.denied.add(denied.code().name());
                let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
                tracing::debug!(code = denied.code().name(), request_id, "{denied}");
                reply::error(denied.status(), denied.code().name(), &denied.to_string())
            }
        }
    }

    fn decisions(&mut self, backend: &Result<Option<Backend<'_>>, Denied>) -> &Arc<Decisions> {
        match backend {
            Ok(Some((name, _))) if self.tallies.contains_key(*name) => &self.tallies[*name],
            Ok(Some((name, _))) => {
                let decisions = self.pen.decisions(name.as_str());
                self.tallies.entry((*name).clone()).or_insert(decisions)
            }
            Ok(None) => &self.others[0],
            Err(_) => &self.others[1],
        }
    }

    fn decide(
        &mut self,
        headers: &HeaderMap,
        backend: Result<Option<Backend<'_>>, Denied>,
        now: SystemTime,
    ) -> Result<AppId, Denied> {
        match only(headers, &VERIFY)?.map(HeaderValue::as_bytes) {
            Some(b"SUCCESS") => {}
            None | Some(b"" | b"NONE") => return Err(Denied::NoCertificate),
            Some(_) => return Err(Denied::NotVerified),
        }
        let escaped = only(headers, &CERT)?.ok_or(Denied::NoCertificate)?.as_bytes();
        let caller = self.caller(escaped)?;
        if now < caller.not_before || caller.not_after < now {
            return Err(Denied::OutOfTime);
        }
        match backend? {
            Some((_, allowed)) if !allowed.allows(&caller.app_id) => Err(Denied::NotAllowed(caller.app_id)),
            _ => Ok(caller.app_id),
        }
    }

    fn caller(&mut self, escaped: &[u8]) -> Result<Caller, Denied> {
        if escaped.len() > MAX_CERT {
            return Err(Denied::Unreadable);
        }
        if let Some(caller) = self.known.get(escaped) {
            return Ok(*caller);
        }
        let certificate = one_certificate(escaped).ok_or(Denied::Unreadable)?;
        let (app_id, validity) = ratls::leaf(&certificate)?;
        let caller = Caller {
            app_id,
            not_before: *validity.start(),
            not_after: *validity.end(),
        };
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(escaped.into(), caller);
        Ok(caller)
    }
}

/// A backend, and who may call it.
type Backend<'s> = (&'s BackendName, &'s AllowedApps);

/// The backend a request is for. Without the header there is none: the request is for a page of our own.
fn backend<'s>(headers: &HeaderMap, settings: &'s MeshSettings) -> Result<Option<Backend<'s>>, Denied> {
    let Some(name) = only(headers, &BACKEND)? else {
        return Ok(None);
    };
    let name = name
        .to_str()
        .ok()
        .and_then(|name| name.parse::<BackendName>().ok());
    let known = name.and_then(|name| settings.backends.get_key_value(&name));
    known.map(Some).ok_or(Denied::UnknownBackend)
}

/// The value of a header that may not be repeated.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Denied> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Denied::Repeated(name.clone())),
    }
}

/// Exactly one certificate and nothing else around it.
fn one_certificate(escaped: &[u8]) -> Option<CertificateDer<'static>> {
    let well_escaped = escaped.iter().enumerate().all(|(at, byte)| {
        *byte != b'%'
            || escaped
                .get(at + 1..at + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !well_escaped {
        return None;
    }
    let pem: Vec<u8> = percent_decode(escaped).collect();
    let text = std::str::from_utf8(&pem).ok()?.trim();
    let body = text
        .strip_prefix("-----BEGIN CERTIFICATE-----")?
        .strip_suffix("-----END CERTIFICATE-----")?;
    if body.contains('-') {
        return None;
    }
    CertificateDer::from_pem_slice(text.as_bytes()).ok()
}
