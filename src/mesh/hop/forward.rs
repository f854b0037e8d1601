//! One request over one hop: connect or reuse, send, retry where that is safe, hand the answer back.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use super::connect::{self, Connected, Endpoint, Stream};
use super::failure::Far;
use super::link::{Broken, Link};
use super::metered::Metered;
use super::pool::{Dial, Slot};
use super::upload::Upload;
use super::vouch::Vouch;
use super::{Download, Failure, headers, tunnel};
use crate::mesh::line::Line;
use crate::mesh::reply::Body;
use crate::names::HostPort;
use crate::spec::Limits;

/// Where a request goes, and how long it may take.
pub(in crate::mesh) struct Hop {
    pub(in crate::mesh) far: Far,
    pub(in crate::mesh) slot: Rc<Slot>,
    pub(in crate::mesh) connect_timeout: Duration,
    pub(in crate::mesh) response_timeout: Duration,
    pub(in crate::mesh) idle_timeout: Duration,
    pub(in crate::mesh) limits: Limits,
    /// What the next hop is to believe about the caller.
    pub(in crate::mesh) vouch: Option<Vouch>,
}

/// What an HTTP/1.1 request's headers said that were for this hop.
pub(in crate::mesh) struct Asked<'l> {
    wish: Option<Wish<'l>>,
    /// Where interim responses go.
    line: Option<&'l Arc<Line>>,
}

/// The wish of a client to speak another protocol.
struct Wish<'l> {
    protocol: HeaderValue,
    client: OnUpgrade,
    line: &'l Arc<Line>,
}

impl Hop {
    /// Sends the request over HTTP/1.1. `line` is where it came from, if that is HTTP/1 too.
    pub(in crate::mesh) async fn forward(
        &self,
        request: &mut Request<Upload>,
        line: Option<&Arc<Line>>,
    ) -> Result<Response<Body>, Failure> {
        let mut asked = self.prepare(request, line)?;
        self.carry(request, &mut asked).await
    }

    /// Makes what is sent over HTTP/1.1 of what came in.
    pub(in crate::mesh) fn prepare<'l>(
        &self,
        request: &mut Request<Upload>,
        line: Option<&'l Arc<Line>>,
    ) -> Result<Asked<'l>, Failure> {
        let wish = headers::upgrade(request.headers(), request.version())
            .zip(line)
            .map(|(protocol, line)| Wish {
                protocol,
                client: hyper::upgrade::on(&mut *request),
                line,
            });
        // Only HTTP/1.1 knows interim responses.
        let line = line.filter(|_| request.version() == Version::HTTP_11);
        self.outgoing(request)?;
        frame(request);
        match &wish {
            Some(wish) => headers::set_upgrade(request.headers_mut(), wish.protocol.clone()),
            None => headers::announce_te(request.headers_mut()),
        }
        Ok(Asked { wish, line })
    }

    /// Sends what was prepared. After [`Failure::Backend`] it is still there, and can be sent over another hop.
    pub(in crate::mesh) async fn carry(
        &self,
        request: &mut Request<Upload>,
        asked: &mut Asked<'_>,
    ) -> Result<Response<Body>, Failure> {
        let (mut response, link) = self.send(request, asked.line).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let wish = asked.wish.take().ok_or(Failure::BadResponse { hop: self.far })?;
            return tunnel::switch(response, link, wish.client, &wish.line.life, self.far);
        }
        clean(response.headers_mut()).ok_or(Failure::BadResponse { hop: self.far })?;
        if self.vouch.is_some() {
            headers::strip_commands(response.headers_mut());
        }
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| Body::Http1(Download::new(body, link, Rc::clone(&self.slot)))))
    }

    /// Makes what is sent of what came in.
    pub(in crate::mesh) fn outgoing(&self, request: &mut Request<Upload>) -> Result<(), Failure> {
        address(request, self.name())?;
        headers::strip_request(request.headers_mut());
        if let Some(vouch) = &self.vouch {
            vouch.stamp(request.headers_mut());
        }
        *request.version_mut() = Version::HTTP_11;
        request.extensions_mut().clear();
        Ok(())
    }

    /// Sends a request and brings the head of its response, with the connection its body comes over.
    ///
    /// A connection can die at any time, a pooled one as the peer's nginx reloads, a new one with the worker that took
    /// it. What was certainly not sent is sent on another one; what may have been sent is repeated only once, when
    /// repeating it changes nothing, it has no body, and not one byte of an answer came.
    async fn send(
        &self,
        request: &mut Request<Upload>,
        line: Option<&Arc<Line>>,
    ) -> Result<(Response<Incoming>, Link), Failure> {
        let mut first = true;
        loop {
            let (reused, spare) = match first {
                true => (self.slot.take(self.idle_timeout), repeatable(request)),
                false => (None, None),
            };
            let (mut link, fresh) = match reused {
                Some(link) => (link, false),
                None => Box::pin(self.another(first)).await?,
            };
            hear_interim(request, line);
            match link.exchange(request, self.response_timeout).await {
                Ok(response) => return Ok((response, link)),
                Err(Broken::Unsent(unsent, _)) if !fresh => *request = *unsent,
                Err(Broken::Unsent(..)) if link.heard() => {
                    // An answer that came before the question.
                    return Err(Failure::BadResponse { hop: self.far });
                }
                Err(Broken::Unsent(_, error)) => {
                    return Err(Failure::exchange(self.far, self.at(), &error));
                }
                Err(Broken::Lost { heard, error }) => {
                    match (Failure::exchange(self.far, self.at(), &error), spare) {
                        (Failure::PeerClosed { .. }, Some(spare)) if !heard => {
                            *request = spare;
                            first = false;
                        }
                        (failure, _) => return Err(failure),
                    }
                }
                Err(Broken::TimedOut) => return Err(self.timed_out()),
                Err(Broken::Flooded) => return Err(Failure::BadResponse { hop: self.far }),
            }
        }
    }

    /// A connection where none was idle, and whether it is new. `patient`: it need not be.
    async fn another(&self, patient: bool) -> Result<(Link, bool), Failure> {
        // To open one more to a backend costs little, and it may want to think about many requests at once.
        let patient = patient && !matches!(self.slot.dial, Dial::Backend(_));
        if patient && let Some(link) = self.slot.wait(self.connect_timeout).await {
            return Ok((link, false));
        }
        Ok((self.connect().await?, true))
    }

    async fn connect(&self) -> Result<Link, Failure> {
        let counted = self.slot.count();
        let _opening = self.slot.opening();
        let deadline = self.deadline();
        let stream = match &self.slot.dial {
            Dial::Peer { endpoint, http1, .. } => {
                Stream::Tls(self.handshake(endpoint, http1, deadline).await?)
            }
            Dial::Agent(addr) => self.in_time(deadline, connect::agent(addr)).await?,
            Dial::Backend(at) => Stream::Tcp(self.in_time(deadline, connect::backend(at)).await?),
        };
        let stream = Metered::new(stream, &self.slot.meter);
        let opened = Link::open(stream, &self.limits, counted).await;
        opened.map_err(|error| Failure::exchange(self.far, self.at(), &error))
    }

    /// Opens a connection to the peer.
    pub(in crate::mesh) async fn handshake(
        &self,
        endpoint: &Endpoint,
        config: &Arc<ClientConfig>,
        deadline: Instant,
    ) -> Result<Connected, Failure> {
        connect::peer(endpoint, config, &self.slot.meter, deadline, self.connect_timeout).await
    }

    /// Until when a connection has to be made.
    pub(in crate::mesh) fn deadline(&self) -> Instant {
        Instant::now() + self.connect_timeout
    }

    /// Bounds the making of a connection.
    pub(in crate::mesh) async fn in_time<T>(
        &self,
        deadline: Instant,
        connecting: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let after = self.connect_timeout;
        timeout_at(deadline, connecting).await.unwrap_or_else(|_| {
            Err(match &self.slot.dial {
                Dial::Peer { endpoint, .. } => Failure::ConnectTimeout {
                    at: endpoint.at.clone(),
                    after,
                },
                Dial::Agent(_) => Failure::ResponseTimeout { hop: self.far, after },
                Dial::Backend(_) => Failure::Backend(io::ErrorKind::TimedOut.into()),
            })
        })
    }

    pub(in crate::mesh) fn timed_out(&self) -> Failure {
        Failure::ResponseTimeout {
            hop: self.far,
            after: self.response_timeout,
        }
    }

    /// Whom a request is for that does not say so itself.
    fn name(&self) -> Option<&HostPort> {
        match &self.slot.dial {
            Dial::Backend(at) => Some(at),
            Dial::Peer { .. } | Dial::Agent(_) => self.at(),
        }
    }

    /// The address of a peer.
    pub(in crate::mesh) fn at(&self) -> Option<&HostPort> {
        match &self.slot.dial {
            Dial::Peer { endpoint, .. } => Some(&endpoint.at),
            Dial::Agent(_) | Dial::Backend(_) => None,
        }
    }
}

/// Takes note of what the peer says before its answer: a `100 Continue` lets the body go, and with it hyper says the
/// same to the client; the others are the client's.
fn hear_interim(request: &mut Request<Upload>, line: Option<&Arc<Line>>) {
    let held = request.body().progress().filter(|_| request.body().is_held());
    let line = line.cloned();
    if held.is_none() && line.is_none() {
        return;
    }
    hyper::ext::on_informational(request, move |response| match (response.status(), &held, &line) {
        (StatusCode::CONTINUE, Some(held), _) => held.go_on(),
        (StatusCode::CONTINUE, None, _) | (_, _, None) => {}
        (status, _, Some(line)) => {
            let mut headers = response.headers().clone();
            headers::strip_hop_by_hop(&mut headers);
            line.interim(status, &headers);
        }
    });
}

/// A copy of a request that may be sent twice (RFC 9110 §9.2.2).
pub(in crate::mesh) fn repeatable(request: &Request<Upload>) -> Option<Request<Upload>> {
    if !request.method().is_idempotent() || !request.body().is_none() {
        return None;
    }
    let mut copy = Request::new(Upload::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Leaves the path in the request line and the authority in `Host` (RFC 9112 §3.2).
pub(in crate::mesh) fn address<B>(request: &mut Request<B>, at: Option<&HostPort>) -> Result<(), Failure> {
    let bad = || Failure::BadRequest("the request's host is not valid");
    // `GET name` has the form of CONNECT, `GET *` that of OPTIONS.
    let of_connect = request.uri().authority().is_some() && request.uri().scheme().is_none();
    let of_options = request.uri().path() == "*" && request.method() != Method::OPTIONS;
    if of_connect || of_options || !request.uri().path().starts_with(['/', '*']) {
        return Err(Failure::BadRequest("the path does not begin with \"/\""));
    }
    if let Some(authority) = request.uri().authority().cloned() {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path
            .parse::<Uri>()
            .map_err(|_| Failure::BadRequest("the path is not valid"))?;
        let host = HeaderValue::try_from(authority.as_str()).map_err(|_| bad())?;
        request.headers_mut().insert(header::HOST, host);
    } else if !request.headers().contains_key(header::HOST) {
        match (request.version(), at) {
            (Version::HTTP_09 | Version::HTTP_10, Some(at)) => {
                let host = HeaderValue::try_from(at.to_string()).map_err(|_| bad())?;
                request.headers_mut().insert(header::HOST, host);
            }
            _ => return Err(Failure::BadRequest("the Host header is missing")),
        }
    }
    let host = request.headers().get(header::HOST);
    host.filter(|host| is_host(host.as_bytes()))
        .map(drop)
        .ok_or_else(bad)
}

/// A name or an address, with or without a port, and nothing else (RFC 9110 §7.2).
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.iter().position(|byte| *byte == b':') {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, &[][..]),
    };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if !name.is_empty() && name.iter().all(is_plain) && port.iter().all(u8::is_ascii_digit) {
        return true; // As nearly all are.
    }
    Authority::try_from(host).is_ok_and(|authority| {
        let port = authority.as_str().strip_prefix(authority.host());
        let port = port.map(|port| port.strip_prefix(':').unwrap_or(port));
        !authority.host().is_empty() && port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Says how long the body is. Without this hyper would leave the body of a GET unframed, and its bytes would be read
/// as the start of the next request.
fn frame(request: &mut Request<Upload>) {
    if request.body().is_none() || request.body().size_hint().exact().is_some() {
        return;
    }
    let headers = request.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
}

/// Makes a response's headers fit for the client; `None` when the length of its body is in doubt.
pub(in crate::mesh) fn clean(headers: &mut HeaderMap) -> Option<()> {
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
        // Both at once is how responses are smuggled (RFC 9112 §6.3).
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || headers.contains_key(header::CONTENT_LENGTH)
        {
            return None;
        }
    }
    if headers::is_repeated(headers, &header::CONTENT_LENGTH)
        && let Some(length) = headers.get(header::CONTENT_LENGTH).cloned()
    {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    headers::strip_hop_by_hop(headers);
    Some(())
}
