//! One HTTP/1.1 connection to a peer, driven by the request that uses it.
//!
//! There is no task behind a connection: whoever holds it polls it. So its owner is always plain, dropping it closes it,
//! and a request costs no wake-up between tasks.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use super::bell::Bell;
use super::connect::Stream;
use super::metered::Metered;
use super::pool::Counted;
use super::upload::{Progress, Upload};
use crate::spec::Limits;

/// Interim responses may take so many times the limit of one head.
const INTERIM_HEADS: u64 = 4;

/// hyper's side of a connection; its own type has no public name.
type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

pub(in crate::mesh) struct Link {
    sender: SendRequest<Upload>,
    /// `None` once it has ended.
    connection: Option<Connection>,
    bell: Arc<Bell>,
    /// `bell`, as the connection knows it.
    waker: Waker,
    /// What the peer sent since the last request was begun, in bytes.
    heard: Arc<AtomicU64>,
    /// How much of that may be interim responses.
    patience: u64,
    timer: Pin<Box<Sleep>>,
    _counted: Counted,
}

/// Why there is no response.
pub(in crate::mesh) enum Broken {
    /// Nothing of the request was sent; here it is again.
    Unsent(Box<Request<Upload>>, hyper::Error),
    /// The connection broke; `heard`: in the middle of a response.
    Lost { heard: bool, error: hyper::Error },
    /// No response in time.
    TimedOut,
    /// Interim responses without end.
    Flooded,
}

impl Broken {
    /// `heard` says whether anything came back.
    pub(in crate::mesh) fn from_failed(mut failed: TrySendError<Request<Upload>>, heard: bool) -> Self {
        match failed.take_message() {
            Some(request) => Self::Unsent(Box::new(request), failed.into_error()),
            None => Self::Lost {
                heard,
                error: failed.into_error(),
            },
        }
    }
}

impl Link {
    pub(in crate::mesh) async fn open(
        stream: Metered<Stream>,
        limits: &Limits,
        counted: Counted,
    ) -> hyper::Result<Self> {
        let heard = Arc::new(AtomicU64::new(0));
        let stream = Heard {
            stream,
            heard: Arc::clone(&heard),
        };
        let (sender, connection) = http1::Builder::new()
            .max_headers(limits.headers.into())
            // It is also what is read ahead of a slow client.
            .max_buf_size(limits.header_bytes() as usize)
            .handshake(TokioIo::new(stream))
            .await?;
        let bell = Arc::<Bell>::default();
        Ok(Self {
            sender,
            connection: Some(Box::pin(connection.with_upgrades())),
            waker: Waker::from(Arc::clone(&bell)),
            bell,
            heard,
            patience: u64::from(limits.header_bytes()) * INTERIM_HEADS,
            timer: Box::pin(sleep_until(Instant::now())),
            _counted: counted,
        })
    }

    /// Sends a request and waits for the head of its response, no longer than `patience` after the request's end.
    pub(in crate::mesh) async fn exchange(
        &mut self,
        request: &mut Request<Upload>,
        patience: Duration,
    ) -> Result<Response<Incoming>, Broken> {
        let upload = request.body().progress();
        self.heard.store(0, Ordering::Relaxed);
        let response = self
            .bell
            .mute(|| self.sender.try_send_request(std::mem::take(request)));
        // It comes out of the connection, which is polled right before it, so nothing else need wake us; nor may tokio
        // put it off, for nothing would wake us then.
        let mut response = pin!(unconstrained(response));
        let mut quiet = Context::from_waker(Waker::noop());
        let mut deadline = None;
        poll_fn(|cx| {
            self.bell.attach(cx);
            poll_connection(&mut self.connection, &self.waker);
            if let Poll::Ready(result) = response.as_mut().poll(&mut quiet) {
                return Poll::Ready(result.map_err(|failed| Broken::from_failed(failed, self.heard())));
            }
            // A peer that always has more to say would keep this thread from its timers.
            if self.heard.load(Ordering::Relaxed) > self.patience {
                return Poll::Ready(Err(Broken::Flooded));
            }
            if deadline.is_none()
                && upload
                    .as_ref()
                    .is_none_or(|upload: &Arc<Progress>| upload.poll_ended(cx))
            {
                deadline = Some(Instant::now() + patience);
            }
            if let Some(deadline) = deadline {
                ready!(poll_deadline(&mut self.timer, deadline, cx));
                return Poll::Ready(Err(Broken::TimedOut));
            }
            Poll::Pending
        })
        .await
    }

    /// Something came since the last request was begun.
    pub(in crate::mesh) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > 0
    }

    /// Moves bytes in both directions as far as they go now.
    pub(in crate::mesh) fn drive(&mut self, cx: &Context<'_>) {
        self.bell.attach(cx);
        poll_connection(&mut self.connection, &self.waker);
    }

    /// The next piece of a response's body, which this link brings.
    pub(in crate::mesh) fn poll_body(
        &mut self,
        body: &mut Incoming,
        cx: &Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut quiet = Context::from_waker(Waker::noop());
        let mut poll = |bell: &Bell| bell.mute(|| Pin::new(&mut *body).poll_frame(&mut quiet));
        let frame = poll(&self.bell);
        if frame.is_ready() {
            return frame;
        }
        self.drive(cx);
        poll(&self.bell)
    }

    /// Its user is done with it: nobody is woken any more. True when another request can be sent.
    pub(in crate::mesh) fn settle(&mut self) -> bool {
        self.bell.detach();
        self.was_idle() || self.look()
    }

    /// Notices what the peer did in the meantime. True when another request can be sent.
    pub(in crate::mesh) fn look(&mut self) -> bool {
        poll_connection(&mut self.connection, &self.waker);
        self.was_idle()
    }

    /// When last polled, both messages had ended, the peer was there and had sent nothing more.
    fn was_idle(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// The raw connection after a 101.
    pub(in crate::mesh) async fn upgraded(mut self, mut upgrade: OnUpgrade) -> hyper::Result<Upgraded> {
        poll_fn(|cx| {
            self.drive(cx);
            Pin::new(&mut upgrade).poll(cx)
        })
        .await
    }
}

fn poll_connection(connection: &mut Option<Connection>, waker: &Waker) {
    // Its error reaches whoever waits for the response or reads the body.
    if let Some(running) = connection
        && running.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
    {
        *connection = None;
    }
}

/// Waits for `deadline` with a timer that mostly still runs from an earlier request: it is set anew only when it fires
/// too early, once in many requests, and not for each.
fn poll_deadline(timer: &mut Pin<Box<Sleep>>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if timer.deadline() > deadline {
        timer.as_mut().reset(deadline);
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if timer.deadline() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
}

/// A stream that notes when it receives something.
struct Heard {
    stream: Metered<Stream>,
    heard: Arc<AtomicU64>,
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let count = (buf.filled().len() - before) as u64;
        let heard = this.heard.load(Ordering::Relaxed);
        this.heard.store(heard.saturating_add(count), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
