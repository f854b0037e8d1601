//! What the parts of one connection know of each other: who listens, who answers, and what is still due.
//!
//! It counts what moves, so that a connection on which nothing does can be cut. It keeps interim responses until there is
//! room between the messages. And it hides that a client has sent its last byte while that client waits for an answer:
//! hyper would take it for gone.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::HeaderMap;
use hyper::{StatusCode, Version};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::listener::Life;
use super::unchanged::{Unchanged, part};
use crate::spec::Limits;

/// Interim responses that wait for a client that does not read, in bytes. What is more is left out: they are hints.
const MAX_INTERIM: usize = 64 * 1024;
/// A connection on which nothing happens for so long may do without what only a talking one needs.
const NAP: Duration = Duration::from_millis(500);
/// How long a client that has sent its last byte is waited for while nothing moves.
const LEFT_PATIENCE: Duration = Duration::from_secs(5);

/// All of it on one thread; hyper only wants to be able to send it.
pub(super) struct Line {
    pub(super) life: Arc<Life>,
    moved: AtomicU64,
    /// Requests whose head was read.
    heads: AtomicU64,
    /// One of them is being answered; over HTTP/2 this stays.
    answering: AtomicBool,
    /// Nothing of hyper's is on its way to the client.
    between: AtomicBool,
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    /// An answer is due, in whole or in part.
    due: AtomicBool,
    /// The request's body is waited for.
    starving: AtomicBool,
    /// The client has sent its last byte.
    ended: AtomicBool,
    on_end: Notify,
    /// It was seen while the body was waited for.
    looked: AtomicBool,
    on_change: AtomicWaker,
    /// The client speaks HTTP/1.0, where an answer may end with its connection.
    old: AtomicBool,
    broke_off: AtomicBool,
}

impl Line {
    pub(super) fn new(life: Arc<Life>) -> Arc<Self> {
        Arc::new(Self {
            life,
            moved: AtomicU64::new(0),
            heads: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            between: AtomicBool::new(true),
            interim: Mutex::default(),
            has_interim: AtomicBool::new(false),
            due: AtomicBool::new(false),
            starving: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            on_end: Notify::new(),
            looked: AtomicBool::new(false),
            on_change: AtomicWaker::new(),
            old: AtomicBool::new(false),
            broke_off: AtomicBool::new(false),
        })
    }

    /// A request has begun. Over HTTP/1 it is being answered until what this returns is dropped.
    pub(super) fn asked(self: &Arc<Self>, version: Version) -> Option<Answering> {
        let heads = self.heads.load(Ordering::Relaxed);
        self.heads.store(heads + 1, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        self.old.store(version < Version::HTTP_11, Ordering::Relaxed);
        (version < Version::HTTP_2).then(|| {
            self.due.store(true, Ordering::Relaxed);
            Answering(Arc::clone(self))
        })
    }

    fn nothing_due(&self) {
        self.due.store(false, Ordering::Relaxed);
        if self.ended.load(Ordering::Relaxed) {
            self.on_change.wake();
        }
    }

    /// The connection ends before its time.
    pub(super) fn broke_off(&self) {
        self.broke_off.store(true, Ordering::Relaxed);
    }

    /// Sends an interim response. While an earlier answer is still on its way it is left out.
    pub(super) fn interim(&self, status: StatusCode, headers: &HeaderMap) {
        let mut waiting = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.between.load(Ordering::Relaxed) || waiting.len() > MAX_INTERIM {
            return;
        }
        waiting.extend(format!("HTTP/1.1 {status}\r\n").bytes());
        for (name, value) in headers {
            waiting.extend_from_slice(name.as_str().as_bytes());
            waiting.extend_from_slice(b": ");
            waiting.extend_from_slice(value.as_bytes());
            waiting.extend_from_slice(b"\r\n");
        }
        waiting.extend_from_slice(b"\r\n");
        self.has_interim.store(true, Ordering::Relaxed);
    }

    /// Whether the request's body is waited for: then its end must be known.
    pub(super) fn starving(&self, starving: bool) {
        if !self.starving.swap(starving, Ordering::Relaxed) && starving {
            self.looked.store(false, Ordering::Relaxed);
            self.on_change.wake();
        }
    }

    /// Returns when nothing is asked or answered, and nothing has moved for a while.
    pub(super) async fn drowsy(&self) {
        let quiet = || {
            let idle = self.between.load(Ordering::Relaxed) && !self.answering.load(Ordering::Relaxed);
            idle.then(|| self.moved.load(Ordering::Relaxed))
        };
        let mut seen = None;
        loop {
            sleep(NAP).await;
            let now = quiet();
            if now.is_some() && now == seen {
                return;
            }
            seen = now;
        }
    }

    /// The connection gave so many bytes.
    pub(super) fn gave(&self, bytes: usize) {
        self.moved(bytes);
        // Until it asks again, the body has something to go on.
        self.starving.store(false, Ordering::Relaxed);
    }

    /// The connection took so many bytes of hyper's.
    pub(super) fn took(&self, bytes: usize) {
        self.between.store(false, Ordering::Relaxed);
        self.moved(bytes);
    }

    /// What hyper had to say was written out whole.
    pub(super) fn is_between(&self) {
        self.between.store(true, Ordering::Relaxed);
    }

    /// Writes out the interim responses that wait.
    pub(super) fn poll_interim(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_interim.load(Ordering::Relaxed) {
            let mut waiting = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
            while !waiting.is_empty() {
                let count = ready!(Pin::new(&mut *stream).poll_write(cx, &waiting))?;
                waiting.drain(..count);
            }
            self.has_interim.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    /// The client has sent its last byte: ready when hyper is to hear of it.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.on_end.notify_one();
        }
        self.on_change.register(cx.waker());
        if self.hides_end() {
            return Poll::Pending;
        }
        // The end of the body may be on its way to whoever waits for it: look again when that was delivered.
        if self.due.load(Ordering::Relaxed) && !self.looked.swap(true, Ordering::Relaxed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether the end of the connection would pass for the end of an answer that broke off.
    pub(super) fn end_misleads(&self) -> bool {
        self.broke_off.load(Ordering::Relaxed) && self.old.load(Ordering::Relaxed)
    }

    fn hides_end(&self) -> bool {
        self.due.load(Ordering::Relaxed) && !self.starving.load(Ordering::Relaxed)
    }

    /// Returns when the connection is to be cut: the client asked for nothing in time, or nothing has moved for long, or
    /// for a while since the client has sent its last byte, as one does that is gone.
    ///
    /// hyper can look after the first, but sets a timer for each request. This is one timer for each connection.
    pub(super) async fn over(&self, limits: &Limits) {
        let (header, stall) = (limits.header_timeout, limits.stall_timeout);
        let [mut silent, mut stalled, mut left] = [header, stall, LEFT_PATIENCE].map(Unchanged::new);
        let mut passed = Duration::ZERO;
        loop {
            let (heads, moved) = (
                self.heads.load(Ordering::Relaxed),
                self.moved.load(Ordering::Relaxed),
            );
            let answering = self.answering.load(Ordering::Relaxed);
            let ended = self.ended.load(Ordering::Relaxed);
            // Before the first request its limit is the one that counts.
            if silent.for_long(passed, (!answering).then_some(heads))
                || stalled.for_long(passed, (heads > 0).then_some(moved))
                || left.for_long(passed, ended.then_some(moved))
            {
                return;
            }
            let pause = part(header.min(stall).min(if ended { LEFT_PATIENCE } else { stall }));
            passed = tokio::select! {
                () = sleep(pause) => pause,
                () = self.on_end.notified(), if !ended => Duration::ZERO,
            };
        }
    }

    fn moved(&self, bytes: usize) {
        let moved = self.moved.load(Ordering::Relaxed);
        self.moved
            .store(moved.wrapping_add(bytes as u64), Ordering::Relaxed);
    }
}

/// A request that is being answered, see [`Line::asked`].
pub(super) struct Answering(Arc<Line>);

impl Answering {
    /// The answer has no known end: nobody would be told in time that it has no reader, for a client that left looks
    /// like one that waits.
    pub(super) fn endless(&self) {
        self.0.nothing_due();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
        self.0.nothing_due();
    }
}

/// The body of an answer, until it has ended.
pub(super) struct Answer<B> {
    body: B,
    _answering: Option<Answering>,
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, answering: Option<Answering>) -> Self {
        Self {
            body,
            _answering: answering,
        }
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::mesh::Role;
    use crate::spec::Spec;

    #[tokio::test(start_paused = true)]
    async fn only_what_stays_the_same_is_over() {
        let limits = Limits {
            header_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(600),
            ..Spec::default().limits
        };
        let line = Line::new(Arc::new(Life::new(Role::Https)));
        let begin = Instant::now();
        let lasts = async |from: Instant| {
            line.over(&limits).await;
            from.elapsed().as_secs()
        };
        assert!((60..=75).contains(&lasts(begin).await), "nothing was asked");

        let begin = Instant::now();
        let answering = line.asked(Version::HTTP_11);
        assert!((600..=615).contains(&lasts(begin).await), "nothing moved");

        let begin = Instant::now();
        let (moving, over) = tokio::join!(
            async {
                for _ in 0..4 {
                    sleep(Duration::from_secs(300)).await;
                    line.moved(1);
                }
            },
            lasts(begin)
        );
        assert_eq!((moving, (1800..=1815).contains(&over)), ((), true), "{over}");

        let begin = Instant::now();
        let (_, over) = tokio::join!(
            async {
                sleep(Duration::from_secs(100)).await;
                line.ended.store(true, Ordering::Relaxed);
                line.on_end.notify_one();
            },
            lasts(begin)
        );
        assert!((104..=107).contains(&over), "{over}");
        drop(answering);
    }
}
