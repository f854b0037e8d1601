//! A client's connection below HTTP: what hyper does not look after.
//!
//! It counts what moves, so that a connection on which nothing does can be cut. It writes interim responses between the
//! messages, for which hyper's server has no way. And it resets a connection whose answer broke off, where its end
//! would look like the answer's.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::header::HeaderMap;
use hyper::{StatusCode, Version};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::listener::Life;
use crate::spec::Limits;

/// Interim responses that wait for a client that does not read, in bytes. What is more is left out: they are hints.
const MAX_INTERIM: usize = 64 * 1024;

/// The socket, as hyper uses it.
pub(super) struct Wire {
    stream: TcpStream,
    line: Arc<Line>,
}

/// What the parts of one connection know of each other. All on one thread; hyper only wants to be able to send it.
pub(super) struct Line {
    pub(super) life: Arc<Life>,
    moved: AtomicU64,
    asked: AtomicBool,
    /// Nothing of hyper's is on its way to the client.
    between: AtomicBool,
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    /// The client speaks HTTP/1.0, where an answer may end with its connection.
    old: AtomicBool,
    broke_off: AtomicBool,
}

impl Line {
    pub(super) fn new(life: Arc<Life>) -> Arc<Self> {
        Arc::new(Self {
            life,
            moved: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            between: AtomicBool::new(true),
            interim: Mutex::default(),
            has_interim: AtomicBool::new(false),
            old: AtomicBool::new(false),
            broke_off: AtomicBool::new(false),
        })
    }

    /// A request has begun.
    pub(super) fn asked(&self, version: Version) {
        self.asked.store(true, Ordering::Relaxed);
        self.old.store(version < Version::HTTP_11, Ordering::Relaxed);
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

    /// Returns when the client asked for nothing in time, or when nothing has moved for long.
    pub(super) async fn stalled(&self, limits: &Limits) {
        const PARTS: u32 = 4;
        sleep(limits.header_timeout).await;
        if !self.asked.load(Ordering::Relaxed) {
            return;
        }
        let (mut seen, mut still) = (0, 0);
        while still < PARTS {
            sleep((limits.stall_timeout / PARTS).max(Duration::from_millis(1))).await;
            let moved = self.moved.load(Ordering::Relaxed);
            still = if moved == seen { still + 1 } else { 0 };
            seen = moved;
        }
    }

    fn moved(&self, bytes: usize) {
        let moved = self.moved.load(Ordering::Relaxed);
        self.moved
            .store(moved.wrapping_add(bytes as u64), Ordering::Relaxed);
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream, line: Arc<Line>) -> Self {
        Self { stream, line }
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.has_interim.load(Ordering::Relaxed) {
            let mut waiting = self.line.interim.lock().unwrap_or_else(PoisonError::into_inner);
            while !waiting.is_empty() {
                let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &waiting))?;
                waiting.drain(..count);
            }
            self.line.has_interim.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&self, bytes: usize) -> Poll<io::Result<usize>> {
        self.line.between.store(false, Ordering::Relaxed);
        self.line.moved(bytes);
        Poll::Ready(Ok(bytes))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.line.broke_off.load(Ordering::Relaxed) && self.line.old.load(Ordering::Relaxed) {
            // Fails for a connection that is gone.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.line.moved(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_interim(cx))?;
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.wrote(count)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_interim(cx))?;
        let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.wrote(count)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes only what it has written out whole.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.line.between.store(true, Ordering::Relaxed);
        ready!(this.poll_interim(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
