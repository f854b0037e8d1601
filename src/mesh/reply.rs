//! Answers: those of our own, and the body type that carries them and the peers'.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::access::Logged;
use super::hop::Download;

/// The body of any answer.
pub(super) enum Body {
    /// Our own words.
    Own(Option<Bytes>),
    /// From a peer or the guest agent over HTTP/1.1, with the connection it comes from.
    Http1(Download),
    /// From a peer over HTTP/2.
    Http2(Incoming),
    /// Any of these, watched for the access log.
    Logged(Logged),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Http1(download) => download.poll_frame(cx),
            Self::Http2(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Logged(logged) => logged.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Http1(download) => download.is_end_stream(),
            Self::Http2(incoming) => incoming.is_end_stream(),
            Self::Logged(logged) => logged.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Http1(download) => download.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
            Self::Logged(logged) => logged.size_hint(),
        }
    }
}

/// For a connection that is not served at all.
pub(super) const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 86\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
    {\"error\":\"too many connections; see limits.connections\",\"code\":\"too_many_connections\"}";

/// An answer without content.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Own(None));
    *response.status_mut() = status;
    response
}

/// 200 with a word, as health checks like it.
pub(super) fn text(body: &'static str) -> Response<Body> {
    own(StatusCode::OK, "text/plain", Bytes::from_static(body.as_bytes()))
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => own(status, "application/json", bytes.into()),
        Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// A refusal, as every client of the mesh gets it: `{"error": …, "code": …}`.
pub(super) fn error(status: StatusCode, code: &str, error: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": error, "code": code }))
}

/// An answer with content of our own.
pub(super) fn own(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Own(Some(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Code;

    #[test]
    fn a_connection_too_many_gets_its_code_and_status() {
        let code = Code::TooManyConnections;
        let (head, body) = FULL.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {} ", code.status().unwrap())));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(body.contains(&format!("\"code\":\"{}\"", code.name())));
    }
}
