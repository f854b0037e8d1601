//! Bytes both ways between two connections. Each side's end is passed on for itself, and whatever is not an end is passed
//! on as what it is: the other side is reset, so that nobody takes half of something for all of it.
//!
//! What is read goes through one buffer that all sessions of a worker share, since nothing waits while it is in there: a
//! session has memory of its own only for what the other side does not take at once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::Session;
use crate::codes::Code;
use crate::mesh::unchanged::unchanged;
use crate::mesh::wire::Reset;

/// In bytes: some TLS records, which are sent together.
const SCRATCH: usize = 64 * 1024;

/// The buffer of one worker.
pub(super) struct Scratch(RefCell<Box<[u8]>>);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(RefCell::new(vec![0; SCRATCH].into()))
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides had said all they had to say.
    Ended,
    /// One of them was gone before.
    BrokeOff,
    /// Nothing moved for too long.
    Idle,
    /// The daemon ends.
    Cut,
}

impl End {
    /// The stable name in metrics and in the log.
    pub(super) fn code(self) -> Code {
        match self {
            Self::Ended => Code::Ended,
            Self::BrokeOff => Code::BrokeOff,
            Self::Idle => Code::Idle,
            Self::Cut => Code::Cut,
        }
    }
}

/// Joins whoever connected (`near`) and what it is to reach.
pub(super) async fn join<N, F>(
    mut near: N,
    mut far: F,
    session: &Session<'_>,
    idle: Duration,
    cut: &CancellationToken,
    scratch: &Scratch,
) -> End
where
    N: AsyncRead + AsyncWrite + Reset + Unpin,
    F: AsyncRead + AsyncWrite + Reset + Unpin,
{
    // Each of these is polled when it was woken, and not whenever a byte moves.
    let mut others = FuturesUnordered::<LocalBoxFuture<'_, End>>::new();
    others.push(Box::pin(unchanged(idle, || session.bytes()).map(|()| End::Idle)));
    others.push(Box::pin(cut.cancelled().map(|()| End::Cut)));
    let (mut there, mut back) = (OneWay::default(), OneWay::default());
    let both = poll_fn(|cx| {
        let buffer = &mut scratch.0.borrow_mut()[..];
        let there = there.poll(cx, &mut near, &mut far, buffer, |bytes| session.received(bytes))?;
        let back = back.poll(cx, &mut far, &mut near, buffer, |bytes| session.sent(bytes))?;
        match (there, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok::<_, io::Error>(())),
            _ => Poll::Pending,
        }
    });
    let end = tokio::select! {
        biased;
        ended = both => match ended {
            Ok(()) => End::Ended,
            Err(error) => {
                tracing::debug!(%error, "a session broke off");
                End::BrokeOff
            }
        },
        Some(end) = others.next() => end,
    };
    drop(others);
    if end != End::Ended {
        near.reset();
        far.reset();
    }
    end
}

/// The bytes of one side on their way to the other.
#[derive(Default)]
struct OneWay {
    /// What the other side did not take yet.
    rest: Vec<u8>,
    gone: usize,
    /// Something was handed over that may wait in a buffer.
    unflushed: bool,
    /// The last byte was read.
    read: bool,
    /// And the other side knows.
    ended: bool,
}

impl OneWay {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        buffer: &mut [u8],
        moved: impl Fn(usize),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.ended {
            while self.gone < self.rest.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.gone..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.gone += count,
                }
            }
            (self.rest, self.gone) = (Vec::new(), 0);
            if self.read {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.ended = true;
                break;
            }
            let mut read = ReadBuf::new(buffer);
            if Pin::new(&mut *from).poll_read(cx, &mut read)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            let bytes = read.filled();
            self.read = bytes.is_empty();
            if !self.read {
                moved(bytes.len());
                self.unflushed = true;
                let taken = match Pin::new(&mut *to).poll_write(cx, bytes)? {
                    Poll::Ready(count) => count,
                    Poll::Pending => 0,
                };
                self.rest.extend_from_slice(&bytes[taken..]);
            }
        }
        Poll::Ready(Ok(()))
    }
}
