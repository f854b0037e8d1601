//! The auth service: nginx asks it, for each inbound request, who the caller is and whether the backend lets it in.
//!
//! nginx verified the chain in the TLS handshake and says so in `x-client-verify`; it can hand over the leaf only.
//! The listener must be reachable by nginx alone: whoever can set these headers can name any app.

use std::collections::HashMap;
use std::time::SystemTime;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::MeshSettings;
use super::reply::{self, Body};
use crate::names::{AppId, BackendName};
use crate::ratls;

const CERT: HeaderName = HeaderName::from_static("x-client-cert");
const VERIFY: HeaderName = HeaderName::from_static("x-client-verify");
const BACKEND: HeaderName = HeaderName::from_static("x-dstack-backend");
const APP_ID: HeaderName = HeaderName::from_static("x-dstack-app-id");

/// Escaped, in bytes. A leaf of the KMS is 1 to 3 KiB, with a quote inside 20.
const MAX_CERT: usize = 64 * 1024;
/// Certificates remembered by each worker; the same few come again and again.
const REMEMBERED: usize = 128;

/// Reads certificates, and remembers them by the exact bytes of their header.
#[derive(Default)]
pub(super) struct Auth {
    known: HashMap<Box<[u8]>, Caller>,
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

    fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::NotVerified => "untrusted_chain",
            Self::Repeated(_) | Self::Unreadable => "bad_certificate",
            Self::OutOfTime => "expired",
            Self::Certificate(cause) => cause.code(),
            Self::NotAllowed(_) => "not_allowed",
            Self::UnknownBackend => "unknown_backend",
        }
    }
}

impl Auth {
    pub(super) fn answer<B>(&mut self, request: &Request<B>, settings: &MeshSettings) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/auth") => {}
            (_, "/health") => return reply::text("OK"),
            _ => {
                return reply::error(
                    StatusCode::NOT_FOUND,
                    "not_found",
                    "only /auth and /health are here",
                );
            }
        }
        match self.decide(request.headers(), settings, SystemTime::now()) {
            Ok(app_id) => {
                let mut response = reply::empty(StatusCode::OK);
                if let Ok(value) = HeaderValue::from_str(&app_id.to_string()) {
                    response.headers_mut().insert(APP_ID, value);
                }
                response
            }
            Err(denied) => {
                tracing::debug!(code = denied.code(), "{denied}");
                reply::error(denied.status(), denied.code(), &denied.to_string())
            }
        }
    }

    fn decide(
        &mut self,
        headers: &HeaderMap,
        settings: &MeshSettings,
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
        // Without the header there is no backend to ask for: the request is for a page of our own.
        if let Some(name) = only(headers, &BACKEND)? {
            let name = name
                .to_str()
                .ok()
                .and_then(|name| name.parse::<BackendName>().ok());
            let allowed = name.and_then(|name| settings.backends.get(&name));
            if !allowed.ok_or(Denied::UnknownBackend)?.allows(&caller.app_id) {
                return Err(Denied::NotAllowed(caller.app_id));
            }
        }
        Ok(caller.app_id)
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
