//! The access log: one line for each request, when the last byte of its answer has gone, or nobody wants it any more.
//!
//! It is made only where `mesh.access_log` is on. The query is left out: people put secrets there.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::http::request;
use hyper::{Method, Response, StatusCode};

use super::hop::Progress;
use super::outbound::Target;
use super::reply::Body;
use super::tally;
use crate::codes::Code;
use crate::log;
use crate::names::{AppId, BackendName};

/// Of the path, in bytes.
const LONGEST_PATH: usize = 1024;
/// Also a request that nobody waited for to be answered.
const GONE: &str = Code::ClientGone.name();

/// From whom, or to whom.
pub(super) enum Way {
    /// To another app; `None`: to the guest agent, or to nobody.
    Out(Option<Target>),
    /// From another app, as far as its certificate tells, to a backend, if its Host names one.
    In(Option<AppId>, Option<BackendName>),
}

impl Way {
    /// Of a request that came to the outbound proxy.
    pub(super) fn out(headers: &HeaderMap) -> Self {
        Self::Out(Target::of(headers).ok().flatten())
    }
}

/// A request that is to be logged. It is, when this is dropped.
pub(super) struct Entry {
    began: Instant,
    id: HeaderValue,
    way: Way,
    method: Method,
    path: String,
    upload: Option<Arc<Progress>>,
    status: Option<StatusCode>,
    outcome: &'static str,
    /// Of bodies and tunnels, in bytes: from the client, and to it.
    received: u64,
    sent: u64,
}

impl Entry {
    pub(super) fn new(
        began: Instant,
        id: &HeaderValue,
        way: Way,
        parts: &request::Parts,
        upload: Option<Arc<Progress>>,
    ) -> Box<Self> {
        Box::new(Self {
            began,
            id: id.clone(),
            way,
            method: parts.method.clone(),
            path: shortened(parts.uri.path()),
            upload,
            status: None,
            outcome: GONE,
            received: 0,
            sent: 0,
        })
    }

    /// Follows the answer to its end; `failed` is the code, where it is one of our own refusals.
    pub(super) fn answered(
        mut self: Box<Self>,
        mut response: Response<Body>,
        failed: Option<&'static str>,
    ) -> Response<Body> {
        self.status = Some(response.status());
        self.outcome = failed.unwrap_or(tally::class(response.status()));
        if let Some(handover) = response.extensions_mut().remove::<Handover>() {
            *handover.lock() = Some(self);
            return response;
        }
        response.map(|body| {
            Body::Logged(Logged {
                body: Box::new(body),
                ended: false,
                entry: self,
            })
        })
    }
}

fn shortened(path: &str) -> String {
    let longest = path.len().min(LONGEST_PATH);
    let end = (0..=longest)
        .rev()
        .find(|at| path.is_char_boundary(*at))
        .unwrap_or(0);
    let dots = if end < path.len() { "…" } else { "" };
    format!("{}{dots}", &path[..end])
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (app, target, backend) = match &self.way {
            Way::Out(target) => (target.map(|target| target.app), *target, None),
            Way::In(app, backend) => (*app, None, backend.as_ref()),
        };
        let uploaded = self.upload.as_ref().map_or(0, |upload| upload.bytes());
        tracing::info!(
            target: log::ACCESS,
            request_id = self.id.to_str().unwrap_or_default(),
            backend = backend.map(tracing::field::display),
            app = app.map(tracing::field::display),
            instance = target.and_then(|target| target.instance).map(tracing::field::display),
            port = target.map(|target| target.port),
            method = self.method.as_str(),
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            outcome = self.outcome,
            received_bytes = self.received + uploaded,
            sent_bytes = self.sent,
            duration_ms = self.began.elapsed().as_micros() as f64 / 1000.0,
            "request"
        );
    }
}

/// An answer's body, watched for the log.
pub(super) struct Logged {
    body: Box<Body>,
    ended: bool,
    entry: Box<Entry>,
}

impl Logged {
    /// As [`HttpBody::poll_frame`].
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = Pin::new(&mut *self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                // Nobody polls again after trailers.
                self.ended |= frame.is_trailers();
            }
            Poll::Ready(Some(Err(_))) => {
                self.entry.outcome = Code::PeerClosed.name();
                self.ended = true;
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => {}
        }
        frame
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // A body of known length is not polled beyond it.
        if !self.ended && !self.body.is_end_stream() {
            self.entry.outcome = GONE;
        }
    }
}

/// Lets a tunnel, which goes on after its answer, end the line in the log.
#[derive(Clone, Default)]
pub(super) struct Handover(Arc<Mutex<Option<Box<Entry>>>>);

impl Handover {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Box<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnel ended; bytes from the client and to it.
    pub(super) fn ended(&self, (received, sent): (u64, u64)) {
        if let Some(mut entry) = self.lock().take() {
            entry.received = received;
            entry.sent = sent;
        }
    }
}
