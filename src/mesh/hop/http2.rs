//! Requests that came in over HTTP/2 go out over HTTP/2 where the peer speaks it: gRPC needs that.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{self, HeaderMap};
use hyper::http::uri::Scheme;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::sleep;

use super::connect::{self, Stream};
use super::forward::{Hop, clean};
use super::link::Broken;
use super::metered::Metered;
use super::pool::Dial;
use super::upload::Upload;
use super::{Failure, headers};
use crate::mesh::reply::Body;
use crate::mesh::worker::{KEEP_ALIVE, LAST, Local};

impl Hop {
    /// Sends a request over HTTP/2, or over HTTP/1.1 to a peer that does not speak it.
    pub(in crate::mesh) async fn forward_http2(
        &self,
        request: &mut Request<Upload>,
    ) -> Result<Response<Body>, Failure> {
        let Some(mut connection) = self.http2_connection().await? else {
            return self.forward(request, None).await;
        };
        self.outgoing(request)?;
        let scheme = match self.slot.dial {
            Dial::Backend(_) => Scheme::HTTP,
            Dial::Peer { .. } | Dial::Agent(_) => Scheme::HTTPS,
        };
        *request.uri_mut() = absolute(scheme, request.uri(), request.headers())?;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        // hyper tells nothing of a `100 Continue` over HTTP/2, where it saves a frame at most.
        request.headers_mut().remove(header::EXPECT);
        if let Some(progress) = request.body().progress() {
            progress.go_on();
        }

        let mut response = loop {
            match self.exchange_http2(connection.sender, request).await {
                Ok(response) => break response,
                // The connection ended before it took the request.
                Err(Broken::Unsent(unsent, _)) if !connection.fresh => *request = *unsent,
                Err(Broken::Unsent(_, error) | Broken::Lost { error, .. }) => {
                    return Err(Failure::exchange(self.far, self.at(), &error));
                }
                Err(Broken::TimedOut) => return Err(self.timed_out()),
                Err(Broken::Flooded) => return Err(Failure::BadResponse { hop: self.far }),
            }
            connection = self
                .http2_connection()
                .await?
                .ok_or(Failure::PeerClosed { hop: self.far })?;
        };
        if response.headers_mut().remove(LAST).is_some() {
            self.slot.leave_http2();
        }
        clean(response.headers_mut()).ok_or(Failure::BadResponse { hop: self.far })?;
        if self.vouch.is_some() {
            headers::strip_commands(response.headers_mut());
        }
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(Body::Http2))
    }

    async fn exchange_http2(
        &self,
        mut sender: SendRequest<Upload>,
        request: &mut Request<Upload>,
    ) -> Result<Response<Incoming>, Broken> {
        if let Err(error) = sender.ready().await {
            return Err(Broken::Unsent(Box::new(std::mem::take(request)), error));
        }
        let upload = request.body().progress();
        let mut response = pin!(sender.try_send_request(std::mem::take(request)));
        let mut patience = None;
        poll_fn(|cx| {
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                return Poll::Ready(response.map_err(|failed| Broken::from_failed(failed, true)));
            }
            if patience.is_none() && upload.as_ref().is_none_or(|upload| upload.poll_ended(cx)) {
                patience = Some(Box::pin(sleep(self.response_timeout)));
            }
            match &mut patience {
                Some(patience) => patience.as_mut().poll(cx).map(|()| Err(Broken::TimedOut)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The target's one HTTP/2 connection; `None` when the peer chose HTTP/1.1.
    async fn http2_connection(&self) -> Result<Option<Connection>, Failure> {
        let pooled = || {
            let sender = self.slot.http2()?;
            Some(Connection { sender, fresh: false })
        };
        if let Dial::Agent(_) = &self.slot.dial {
            return Ok(None);
        }
        if let Some(connection) = pooled() {
            return Ok(Some(connection));
        }
        let deadline = self.deadline();
        let locked = async { Ok(self.slot.connecting.lock().await) };
        let _one_at_a_time = self.in_time(deadline, locked).await?;
        if self.slot.only_http1() {
            return Ok(None);
        }
        if let Some(connection) = pooled() {
            return Ok(Some(connection));
        }
        let stream = match &self.slot.dial {
            Dial::Agent(_) => return Ok(None),
            // Whoever is asked for gRPC speaks HTTP/2.
            Dial::Backend(at) => Stream::Tcp(self.in_time(deadline, connect::backend(at)).await?),
            Dial::Peer { endpoint, http2, .. } => {
                let stream = self.handshake(endpoint, http2, deadline).await?;
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    self.slot.set_only_http1();
                    return Ok(None);
                }
                Stream::Tls(stream)
            }
        };
        let stream = Metered::new(stream, &self.slot.meter);
        let opening = http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .max_header_list_size(self.limits.header_bytes())
            .handshake(TokioIo::new(stream));
        let opened = async { Ok(opening.await) };
        let (sender, driver) = self
            .in_time(deadline, opened)
            .await?
            .map_err(|error| Failure::exchange(self.far, self.at(), &error))?;
        // It ends when the last sender and the last stream are gone, and with the worker's runtime.
        tokio::task::spawn_local(driver);
        self.slot.set_http2(&sender);
        Ok(Some(Connection { sender, fresh: true }))
    }
}

struct Connection {
    sender: SendRequest<Upload>,
    /// Made for this request.
    fresh: bool,
}

/// The URI as HTTP/2 wants it: `:authority` is what `Host` was.
fn absolute(scheme: Scheme, uri: &Uri, headers: &HeaderMap) -> Result<Uri, Failure> {
    let host = headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(uri.path_and_query().map_or("/", |path| path.as_str()))
        .build()
        .map_err(|_| Failure::BadRequest("the request's host is not valid"))
}
