//! A client's connection below HTTP: what hyper does not look after.
//!
//! It tells its [`Line`] what moves. It writes interim responses between the messages, for which hyper's server has no way,
//! and keeps the client's end from hyper for as long as the line says. And it resets a connection whose answer broke off,
//! where its end would look like the answer's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hop::connect::Connected;
use super::inbound::Accepted;
use super::line::Line;
use super::socket::Socket;

/// The socket, as hyper uses it.
pub(super) struct Wire<S: Reset> {
    stream: S,
    line: Arc<Line>,
    /// What was read before, and is to be read first.
    ahead: Bytes,
}

/// A stream that can be ended so that nobody takes it for the end of the message.
pub(super) trait Reset {
    fn reset(&self);
}

impl Reset for Socket {
    fn reset(&self) {
        // Fails for a connection that is gone.
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

impl Reset for Accepted {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl Reset for Connected {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl<S: Reset + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, line: Arc<Line>) -> Self {
        let ahead = Bytes::new();
        Self { stream, line, ahead }
    }

    /// Hands out these bytes before any others.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        // Empty as they may be, they would keep the buffer that they were read into.
        if !bytes.is_empty() {
            self.ahead = bytes;
        }
    }

    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: Reset> Drop for Wire<S> {
    fn drop(&mut self) {
        if self.line.end_misleads() {
            self.stream.reset();
        }
    }
}

impl<S: Reset + AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        if count > 0 {
            this.line.gave(count);
        } else if buf.remaining() > 0 {
            return this.line.poll_end(cx).map(Ok);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Reset + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.line.poll_interim(&mut this.stream, cx))?;
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.line.took(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.line.poll_interim(&mut this.stream, cx))?;
        let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.line.took(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes only what it has written out whole.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.is_between();
        ready!(this.line.poll_interim(&mut this.stream, cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use tokio::io::Sink;

    use super::*;
    use crate::mesh::Role;
    use crate::mesh::listener::Life;

    impl Reset for Sink {
        fn reset(&self) {}
    }

    #[test]
    fn no_buffer_is_kept_for_nothing() {
        let line = Line::new(Arc::new(Life::new(Role::Https)));
        let mut wire = Wire::new(tokio::io::sink(), line);
        let buffer: Arc<[u8]> = Arc::from([0; 8192]);
        let mut read = Bytes::from_owner(Arc::clone(&buffer));
        read.advance(buffer.len());
        wire.put_back(read);
        assert_eq!(Arc::strong_count(&buffer), 1);
        wire.put_back(Bytes::from_owner(Arc::clone(&buffer)));
        assert_eq!(Arc::strong_count(&buffer), 2);
    }
}
