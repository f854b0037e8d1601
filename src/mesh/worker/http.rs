//! HTTP over one connection of a client: hyper's server, and how a connection ends that the client does not end.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::Worker;
use crate::mesh::hop::Failure;
use crate::mesh::inbound::{Accepted, Caller};
use crate::mesh::line::{Answer, Answering, Line};
use crate::mesh::listener::Life;
use crate::mesh::reply::Body;
use crate::mesh::wire::{Reset, Wire};
use crate::spec::Limits;

/// How often a silent HTTP/2 connection is asked whether it still lives.
pub(in crate::mesh) const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a silent connection is left open after its listener was told to stop.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// What hyper keeps of an answer for a client that does not read it, for each HTTP/2 stream, in bytes.
const MAX_UNSENT: usize = 64 * 1024;
/// Tells nginx that it is to end its client's connection; see [`crate::mesh::Mesh::bid_farewell`].
pub(in crate::mesh) const LAST: HeaderName = HeaderName::from_static("x-dstack-last");

/// Who asks over a connection, and so who answers.
#[derive(Clone)]
pub(super) enum Asker {
    /// A local app: the outbound proxy.
    App,
    /// A local app at the built-in front: that has a few files, and the rest is the proxy's.
    AppAtFront,
    /// nginx, which wants to know who a caller is.
    Nginx,
    /// Another app, or somebody who may be one: the built-in front.
    Peer(Rc<Caller>),
}

/// hyper's server for certain limits.
pub(super) struct Http {
    limits: Limits,
    builder: auto::Builder<Local>,
    /// For those who speak nothing else.
    http1: http1::Builder,
}

impl Http {
    pub(super) fn new(limits: &Limits) -> Rc<Self> {
        let mut builder = auto::Builder::new(Local);
        builder
            .http1()
            .header_read_timeout(None)
            .max_headers(limits.headers.into())
            .max_buf_size(limits.header_bytes() as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(limits.header_bytes())
            .max_concurrent_streams(u32::from(limits.streams))
            .max_send_buf_size(MAX_UNSENT)
            .keep_alive_interval(KEEP_ALIVE);
        let mut http1 = http1::Builder::new();
        http1
            .header_read_timeout(None)
            .max_headers(limits.headers.into())
            .max_buf_size(limits.header_bytes() as usize);
        Rc::new(Self {
            limits: limits.clone(),
            builder,
            http1,
        })
    }
}

impl Worker {
    /// What is said over one connection.
    pub(super) async fn converse<S>(self: Rc<Self>, stream: S, life: Arc<Life>, asker: Asker)
    where
        S: Reset + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (http, line) = (self.http(), Line::new(Arc::clone(&life)));
        let (worker, its_line) = (Rc::clone(&self), Arc::clone(&line));
        let service = service_fn(move |request: Request<Incoming>| {
            // At once: hyper looks for more before it first asks for the answer.
            let answering = its_line.asked(request.version());
            Rc::clone(&worker).answer(request, Arc::clone(&its_line), answering, asker.clone())
        });
        let stream = TokioIo::new(Wire::new(stream, Arc::clone(&line)));
        let mut connection = pin!(http.builder.serve_connection_with_upgrades(stream, service));
        let mut ends = pin!(self.ends(line.over(&http.limits), &line));
        let well = loop {
            tokio::select! {
                biased;
                // What matters to the client was answered in HTTP.
                ended = connection.as_mut() => break ended.is_ok(),
                Some(end) = ends.next() => match end {
                    End::Cut => break false,
                    End::Drain => {
                        connection.as_mut().graceful_shutdown();
                        ends.push(Box::pin(life.cut.cancelled().map(|()| End::Cut)));
                    }
                }
            }
        };
        if !well {
            line.broke_off();
        }
    }

    /// The same with a peer that speaks nothing but HTTP/1.1. Peers keep many connections and use few, so what is
    /// idle keeps no more than its TLS and a timer: the rest comes back with the next byte.
    pub(super) async fn converse_http1(self: Rc<Self>, stream: Accepted, life: Arc<Life>, asker: Asker) {
        let (http, line) = (self.http(), Line::new(Arc::clone(&life)));
        let mut over = pin!(line.over(&http.limits));
        let mut wire = Wire::new(stream, Arc::clone(&line));
        while let Some(mut idle) = Box::pin(self.talk(wire, &http, &line, &asker, over.as_mut())).await {
            let woken = async {
                // What is left of the last answer may still wait in TLS.
                idle.stream().flush().await?;
                idle.stream().get_ref().0.0.readable().await
            };
            tokio::select! {
                biased;
                woken = woken => if woken.is_err() {
                    return;
                },
                () = over.as_mut() => return,
                () = life.stop.cancelled() => {}
            }
            wire = idle;
        }
    }

    /// Answers requests until none has come for a while; then there is the connection again. `over` is polled no more once
    /// it was the end.
    async fn talk(
        self: &Rc<Self>,
        mut wire: Wire<Accepted>,
        http: &Http,
        line: &Arc<Line>,
        asker: &Asker,
        over: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<Wire<Accepted>> {
        let service = service_fn(|request: Request<Incoming>| {
            let answering = line.asked(request.version());
            Rc::clone(self).answer(request, Arc::clone(line), answering, asker.clone())
        });
        let mut ends = pin!(self.ends(over, line));
        loop {
            let connection = http.http1.serve_connection(TokioIo::new(wire), &service);
            let mut connection = connection.with_upgrades();
            let mut drowsy = pin!(line.drowsy());
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = &mut connection => break Some(ended.is_ok()),
                    Some(end) = ends.next() => match end {
                        End::Cut => break Some(false),
                        End::Drain => {
                            Pin::new(&mut connection).graceful_shutdown();
                            ends.push(Box::pin(line.life.cut.cancelled().map(|()| End::Cut)));
                        }
                    },
                    // Whoever is about to leave stays awake for it.
                    () = drowsy.as_mut(), if !line.life.stop.is_cancelled() => break None,
                }
            };
            if let Some(well) = ended {
                if !well {
                    line.broke_off();
                }
                return None;
            }
            // There are none where it was handed over to a tunnel.
            let parts = connection.into_parts()?;
            wire = parts.io.into_inner();
            let begun = !parts.read_buf.is_empty();
            wire.put_back(parts.read_buf);
            // Half of a head may be there.
            if !begun {
                return Some(wire);
            }
        }
    }

    /// A panic is one request's: it is answered, and the connection and its worker go on.
    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        line: Arc<Line>,
        answering: Option<Answering>,
        asker: Asker,
    ) -> Result<Response<Answer<Body>>, Infallible> {
        let (http1, life) = (request.version() < Version::HTTP_2, &line.life);
        let answer = AssertUnwindSafe(async {
            match &asker {
                Asker::App => self.outbound.answer(request, &line).await,
                Asker::AppAtFront => match self.inbound.local(&request) {
                    Some(answer) => answer.await,
                    None => self.outbound.answer(request, &line).await,
                },
                Asker::Nginx => self
                    .auth
                    .borrow_mut()
                    .answer(&request, &self.shared.settings.load()),
                Asker::Peer(caller) => self.inbound.answer(request, &line, caller).await,
            }
        });
        let answer = answer.catch_unwind().await;
        let mut answer = answer.unwrap_or_else(|_| Failure::Internal.reply(None));
        if http1 && life.stop.is_cancelled() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        if self.shared.farewell.load(Ordering::Relaxed) {
            let last = HeaderValue::from_static("1");
            answer.headers_mut().insert(LAST, last);
        }
        if let (Some(answering), None) = (&answering, answer.body().size_hint().exact()) {
            answering.endless();
        }
        Ok(answer.map(|body| Answer::new(body, answering)))
    }

    /// What ends a connection that the client does not end: it is `over`, or its listener stops. Each of these is polled when
    /// it was woken, and not whenever a byte moves.
    fn ends<'l>(
        &'l self,
        over: impl Future<Output = ()> + 'l,
        line: &'l Line,
    ) -> FuturesUnordered<LocalBoxFuture<'l, End>> {
        let ends = FuturesUnordered::<LocalBoxFuture<'_, End>>::new();
        ends.push(Box::pin(over.map(|()| End::Cut)));
        ends.push(Box::pin(async {
            line.life.stop.cancelled().await;
            // Closing an idle connection at once would meet the requests that are just being written into it. From now
            // on answers say `Connection: close`; what is still silent after a while is not about to speak.
            sleep(IDLE_GRACE.min(self.shared.settings.load().drain_timeout / 2)).await;
            End::Drain
        }));
        ends
    }

    fn http(&self) -> Rc<Http> {
        let limits = &self.shared.settings.load().limits;
        let mut http = self.http.borrow_mut();
        if http.limits != *limits {
            *http = Http::new(limits);
        }
        Rc::clone(&http)
    }
}

/// How a connection ends when the client does not end it.
enum End {
    /// As soon as what is asked for was answered.
    Drain,
    /// Now.
    Cut,
}

/// Runs hyper's own tasks on the thread that asked.
#[derive(Clone, Copy)]
pub(in crate::mesh) struct Local;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}
