//! The response's body on its way to the client, and the connection it comes over.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::link::Link;
use super::pool::Slot;

/// A response body. When it ends, its connection goes back to the pool; when it is dropped before, the connection is
/// closed, because what is left on it belongs to nobody.
pub(in crate::mesh) struct Download {
    body: Incoming,
    source: Option<(Link, Rc<Slot>)>,
}

impl Download {
    pub(in crate::mesh) fn new(body: Incoming, link: Link, slot: Rc<Slot>) -> Self {
        let mut download = Self {
            body,
            source: Some((link, slot)),
        };
        // Nobody polls a body that says it is empty.
        if download.body.is_end_stream() {
            download.release();
        }
        download
    }

    /// As [`Body::poll_frame`].
    pub(in crate::mesh) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = match &mut self.source {
            Some((link, _)) => link.poll_body(&mut self.body, cx),
            None => Pin::new(&mut self.body).poll_frame(cx),
        };
        let ended = match &frame {
            Poll::Pending => false,
            // Nobody polls again after trailers.
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) => {
                self.source = None;
                false
            }
            Poll::Ready(None) => true,
        };
        if ended {
            self.release();
        }
        frame
    }

    /// An upstream may have answered before it read the whole request; then the connection is not idle, and is closed.
    fn release(&mut self) {
        if let Some((mut link, slot)) = self.source.take()
            && link.settle()
        {
            slot.put(link);
        }
    }

    pub(in crate::mesh) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(in crate::mesh) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
