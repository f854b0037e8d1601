//! The request's body on its way to the peer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap};
use tokio::time::{Sleep, sleep, timeout};

use super::headers;
use crate::mesh::line::Line;

/// How much of a refused request's body is read, in bytes, and for how long.
const DISCARD: usize = 4 * 1024 * 1024;
const DISCARD_PATIENCE: Duration = Duration::from_secs(1);

/// A request body that can be watched, or none. It passes frame by frame, when the peer takes them.
#[derive(Default)]
pub(in crate::mesh) struct Upload(Option<Streaming>);

struct Streaming {
    body: Incoming,
    /// Where it comes from.
    line: Arc<Line>,
    progress: Arc<Progress>,
    /// Until the peer says `100 Continue`.
    held: Option<Pin<Box<Sleep>>>,
}

/// How far an upload is: hyper moves the body out of our sight, so this stays behind.
#[derive(Default)]
pub(in crate::mesh) struct Progress {
    bytes: AtomicU64,
    ended: AtomicBool,
    on_end: AtomicWaker,
    wanted: AtomicBool,
    on_wanted: AtomicWaker,
}

impl Upload {
    /// The body of a request with these headers. If the client expects `100 Continue`, nothing is read before
    /// [`Progress::go_on`], or for `patience`: a peer need not say it (RFC 9110 §10.1.1).
    pub(in crate::mesh) fn new(
        body: Incoming,
        line: &Arc<Line>,
        version: Version,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Self {
        let expectation = headers
            .get(header::EXPECT)
            .filter(|_| version >= Version::HTTP_11);
        let held = expectation.is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if body.is_end_stream() {
            return Self(None);
        }
        Self(Some(Streaming {
            body,
            line: Arc::clone(line),
            progress: Arc::default(),
            held: held.then(|| Box::pin(sleep(patience))),
        }))
    }

    /// It waits for [`Progress::go_on`].
    pub(in crate::mesh) fn is_held(&self) -> bool {
        self.0.as_ref().is_some_and(|streaming| streaming.held.is_some())
    }

    pub(in crate::mesh) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Reads a body that nobody will get, as far as that is quickly done: closing a connection on a client that still
    /// writes would take the answer from it.
    pub(in crate::mesh) async fn discard(self) {
        let Some(Streaming {
            mut body,
            line,
            held: None,
            ..
        }) = self.0
        else {
            return; // The client waits for `100 Continue`, and the refusal is as good.
        };
        // It is waited for without an end of our own.
        line.starving(true);
        let read = async {
            let mut left = DISCARD;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        // Either way it is enough.
        let _ = timeout(DISCARD_PATIENCE, read).await;
    }

    pub(in crate::mesh) fn progress(&self) -> Option<Arc<Progress>> {
        self.0.as_ref().map(|streaming| Arc::clone(&streaming.progress))
    }
}

impl Progress {
    /// How much was handed over.
    pub(in crate::mesh) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, more: usize) {
        // Nobody else writes it.
        self.bytes.store(self.bytes() + more as u64, Ordering::Relaxed);
    }

    /// The peer wants the body.
    pub(in crate::mesh) fn go_on(&self) {
        self.wanted.store(true, Ordering::Release);
        self.on_wanted.wake();
    }

    /// True when the last byte was handed over; else the task is woken when it is.
    pub(in crate::mesh) fn poll_ended(&self, cx: &Context<'_>) -> bool {
        self.ended.load(Ordering::Acquire) || {
            self.on_end.register(cx.waker());
            self.ended.load(Ordering::Acquire)
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.on_end.wake();
    }
}

impl Streaming {
    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(patience) = &mut self.held {
            self.progress.on_wanted.register(cx.waker());
            if !self.progress.wanted.load(Ordering::Acquire) {
                ready!(patience.as_mut().poll(cx));
            }
            self.held = None;
        }
        Poll::Ready(())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(streaming) = &mut self.get_mut().0 else {
            return Poll::Ready(None);
        };
        ready!(streaming.poll_wanted(cx));
        let frame = Pin::new(&mut streaming.body).poll_frame(cx);
        streaming.line.starving(frame.is_pending());
        let mut frame = ready!(frame);
        if let Some(Ok(frame)) = &mut frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            streaming.progress.count(bytes);
            if let Some(trailers) = frame.trailers_mut() {
                headers::strip_trailers(trailers);
            }
        }
        let more = matches!(&frame, Some(Ok(frame)) if frame.is_data()) && !streaming.body.is_end_stream();
        if !more {
            streaming.progress.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|streaming| streaming.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(streaming) => streaming.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
