//! A TCP connection that sends what is small in the cheapest way.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Up to so many bytes, to copy them together and `send` them takes less time than `writev`.
const SMALL: usize = 2048;

/// The head and the body of a message come in pieces, and mostly both are small.
pub(super) struct Socket(pub(super) TcpStream);

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.0);
        if let [only] = bufs {
            return stream.poll_write(cx, only);
        }
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if length > SMALL {
            return stream.poll_write_vectored(cx, bufs);
        }
        let mut joined = [0; SMALL];
        let mut rest = &mut joined[..];
        for buf in bufs {
            let (place, after) = rest.split_at_mut(buf.len());
            place.copy_from_slice(buf);
            rest = after;
        }
        stream.poll_write(cx, &joined[..length])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_as_they_were_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut socket = Socket(client);
        let bytes: Vec<u8> = (0..=255).cycle().take(SMALL + 1).collect();
        for cuts in [
            &[0][..],
            &[1],
            &[1000, 1000],
            &[1000, 0, 1048],
            &[SMALL, 1],
            &[0, 0],
        ] {
            let mut rest = &bytes[..];
            let pieces = cuts.iter().map(|length| {
                let (piece, after) = rest.split_at(*length);
                rest = after;
                IoSlice::new(piece)
            });
            let pieces: Vec<_> = pieces.collect();
            let length = cuts.iter().sum();
            let written = poll_fn(|cx| Pin::new(&mut socket).poll_write_vectored(cx, &pieces)).await;
            assert_eq!(written.unwrap(), length, "{cuts:?}");
            let mut read = vec![0; length];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(read, bytes[..length], "{cuts:?}");
        }
    }
}
