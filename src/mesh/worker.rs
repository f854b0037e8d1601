//! The threads: each with one single-threaded runtime, and everything a request needs within reach.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
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
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::auth::Auth;
use super::hop::Failure;
use super::inbound::{Accepted, Caller, Inbound};
use super::line::{Answer, Answering, Line};
use super::listener::{Accepting, Life};
use super::outbound::Outbound;
use super::reply::Body;
use super::socket::Socket;
use super::streams::Streams;
use super::tally::Pen;
use super::wire::{Reset, Wire};
use super::{Role, Shared};
use crate::spec::Limits;

/// More threads than this bring nothing: the pools get thinner.
const MAX_WORKERS: usize = 8;
/// How often a silent HTTP/2 connection is asked whether it still lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// As peers name it in the handshake.
const HTTP1: &[u8] = b"http/1.1";
/// How long a silent connection is left open after its listener was told to stop.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// What hyper keeps of an answer for a client that does not read it, for each HTTP/2 stream, in bytes.
const MAX_UNSENT: usize = 64 * 1024;
/// Tells nginx that it is to end its client's connection; see [`super::Mesh::bid_farewell`].
pub(super) const LAST: HeaderName = HeaderName::from_static("x-dstack-last");

/// What a worker is asked to do.
pub(super) enum Job {
    Accept(Accepting),
    /// With what counts it as open.
    Serve(TcpStream, Arc<Life>, TaskTrackerToken),
}

/// The way to all workers.
#[derive(Clone)]
pub(super) struct Crew(Arc<[Member]>);

struct Member {
    jobs: UnboundedSender<Job>,
    /// Open connections.
    busy: Arc<AtomicUsize>,
}

impl Crew {
    pub(super) fn first(&self, job: Job) {
        // A closed channel is a mesh that is being taken down.
        let _ = self.0[0].jobs.send(job);
    }

    pub(super) fn least_busy(&self, job: Job) {
        if let Some(member) = self.0.iter().min_by_key(|m| m.busy.load(Ordering::Relaxed)) {
            member.busy.fetch_add(1, Ordering::Relaxed);
            let _ = member.jobs.send(job);
        }
    }
}

/// The running threads.
#[derive(Default)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Waits for threads that were told to end.
    pub(super) async fn join(self) {
        let join = || self.0.into_iter().for_each(|thread| drop(thread.join()));
        // Fails only when a thread panicked, and then there is nothing left to wait for.
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

/// One worker a processor.
pub(super) fn count() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS))
}

/// Starts the workers.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<(Crew, Threads)> {
    let (mut members, mut threads) = (Vec::new(), Vec::new());
    for number in 0..count() {
        let (jobs, inbox) = unbounded_channel();
        let busy = Arc::new(AtomicUsize::new(0));
        members.push(Member {
            jobs,
            busy: Arc::clone(&busy),
        });
        let shared = Arc::clone(shared);
        let (started, outcome) = std::sync::mpsc::channel();
        let body = move || match Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(work(shared, number, inbox, busy));
                // A DNS lookup that hangs must not hold up the end.
                runtime.shutdown_background();
            }
            Err(error) => drop(started.send(Err(error))),
        };
        threads.push(
            thread::Builder::new()
                .name(format!("mesh-{number}"))
                .spawn(body)?,
        );
        outcome.recv().map_err(io::Error::other)??;
    }
    Ok((Crew(members.into()), Threads(threads)))
}

async fn work(shared: Arc<Shared>, number: usize, mut inbox: UnboundedReceiver<Job>, busy: Arc<AtomicUsize>) {
    let worker = Rc::new(Worker::new(Arc::clone(&shared), number, busy));
    let tasks = TaskTracker::new();
    tasks.spawn_local(worker.outbound.clone().keep_house());
    tasks.spawn_local(worker.inbound.clone().keep_house());
    loop {
        let job = tokio::select! {
            job = inbox.recv() => job,
            () = shared.end.cancelled() => None,
        };
        match job {
            Some(Job::Accept(accepting)) => {
                tasks.spawn_local(accepting.run(Arc::clone(&shared)));
            }
            Some(Job::Serve(stream, life, open)) => worker.serve(stream, life, open),
            // The runtime goes down with everything it still runs.
            None => return,
        }
    }
}

/// What one thread has: nothing here is shared, nothing is locked.
struct Worker {
    shared: Arc<Shared>,
    outbound: Rc<Outbound>,
    auth: RefCell<Auth>,
    inbound: Rc<Inbound>,
    streams: Streams,
    http: RefCell<Rc<Http>>,
    pen: Pen,
    busy: Arc<AtomicUsize>,
}

/// hyper's server for certain limits.
struct Http {
    limits: Limits,
    builder: auto::Builder<Local>,
    /// For those who speak nothing else.
    http1: http1::Builder,
}

impl Http {
    fn new(limits: &Limits) -> Rc<Self> {
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
    fn new(shared: Arc<Shared>, number: usize, busy: Arc<AtomicUsize>) -> Self {
        let http = Http::new(&shared.settings.load().limits);
        let pen = Pen::new(&shared.tallies, number);
        let outbound = Rc::new(Outbound::new(Arc::clone(&shared), pen.clone()));
        let inbound = Rc::new(Inbound::new(Arc::clone(&shared), &pen));
        let streams = Streams::new(&shared, &pen, &inbound, &outbound);
        Self {
            outbound,
            inbound,
            streams,
            shared,
            auth: RefCell::new(Auth::new(pen.clone())),
            http: RefCell::new(http),
            pen,
            busy,
        }
    }

    fn http(&self) -> Rc<Http> {
        let limits = &self.shared.settings.load().limits;
        let mut http = self.http.borrow_mut();
        if http.limits != *limits {
            *http = Http::new(limits);
        }
        Rc::clone(&http)
    }

    /// Begins to serve a connection, from its first byte to its last: in a task with as much room as its kind needs.
    fn serve(self: &Rc<Self>, stream: TcpStream, life: Arc<Life>, open: TaskTrackerToken) {
        let busy = Busy::new(self, &life, open);
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| tokio::net::TcpStream::from_std(stream));
        let Ok(stream) = prepared else {
            return; // It is already gone.
        };
        let worker = Rc::clone(self);
        match life.role {
            Role::Https | Role::Backend(_) => spawn_local(async move {
                worker.serve_peer(stream, life).await;
                drop(busy);
            }),
            Role::Client | Role::Auth | Role::Http => spawn_local(async move {
                worker.converse(Socket(stream), life, None).await;
                drop(busy);
            }),
            Role::Forward(ref name) => {
                let name = name.clone();
                spawn_local(async move {
                    worker.streams.outbound(Socket(stream), &name, &life).await;
                    drop(busy);
                })
            }
        };
    }

    async fn serve_peer(self: Rc<Self>, stream: tokio::net::TcpStream, life: Arc<Life>) {
        // What is said next is in a box as well: it needs no room during the handshake, nor the one room for the other.
        let Some((stream, caller)) = Box::pin(self.accept(stream, &life)).await else {
            return;
        };
        match &life.role {
            Role::Backend(name) => Box::pin(self.streams.inbound(stream, &caller, name, &life)).await,
            _ if stream.get_ref().1.alpn_protocol() == Some(HTTP1) => {
                Box::pin(self.converse_http1(stream, life, caller)).await;
            }
            _ => Box::pin(self.converse(stream, life, Some(caller))).await,
        }
    }

    /// The TLS handshake of a peer, which may take as long as the head of a request.
    async fn accept(&self, stream: tokio::net::TcpStream, life: &Life) -> Option<(Accepted, Rc<Caller>)> {
        let door = self.inbound.door()?;
        let patience = self.shared.settings.load().limits.header_timeout;
        let accepted = tokio::select! {
            accepted = timeout(patience, door.accept(stream, &life.role)) => accepted,
            () = life.cut.cancelled() => return None,
        };
        match accepted {
            Ok(Ok(accepted)) => {
                let caller = self.inbound.caller(door, &accepted);
                Some((accepted, Rc::new(caller)))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a peer's TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }

    /// What ends a connection that the client does not end. Each of these is polled when it was woken, and not whenever a
    /// byte moves.
    fn ends<'l>(&'l self, limits: &'l Limits, line: &'l Line) -> FuturesUnordered<LocalBoxFuture<'l, End>> {
        let ends = FuturesUnordered::<LocalBoxFuture<'_, End>>::new();
        ends.push(Box::pin(line.over(limits).map(|()| End::Cut)));
        ends.push(Box::pin(async {
            line.life.stop.cancelled().await;
            // Closing an idle connection at once would meet the requests that are just being written into it. From now
            // on answers say `Connection: close`; what is still silent after a while is not about to speak.
            sleep(IDLE_GRACE.min(self.shared.settings.load().drain_timeout / 2)).await;
            End::Drain
        }));
        ends
    }

    /// What is said over one connection.
    async fn converse<S>(self: Rc<Self>, stream: S, life: Arc<Life>, caller: Option<Rc<Caller>>)
    where
        S: Reset + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (http, line) = (self.http(), Line::new(Arc::clone(&life)));
        let (worker, its_line) = (Rc::clone(&self), Arc::clone(&line));
        let service = service_fn(move |request: Request<Incoming>| {
            // At once: hyper looks for more before it first asks for the answer.
            let answering = its_line.asked(request.version());
            Rc::clone(&worker).answer(request, Arc::clone(&its_line), answering, caller.clone())
        });
        let stream = TokioIo::new(Wire::new(stream, Arc::clone(&line)));
        let mut connection = pin!(http.builder.serve_connection_with_upgrades(stream, service));
        let mut ends = pin!(self.ends(&http.limits, &line));
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

    /// The same with a peer that will speak nothing but HTTP/1.1. Peers keep many connections and use few, so what is
    /// idle keeps no more than its TLS: hyper's part of it comes back with the next byte.
    async fn converse_http1(self: Rc<Self>, stream: Accepted, life: Arc<Life>, caller: Rc<Caller>) {
        let (http, line) = (self.http(), Line::new(Arc::clone(&life)));
        let (worker, its_line) = (Rc::clone(&self), Arc::clone(&line));
        let service = service_fn(move |request: Request<Incoming>| {
            let answering = its_line.asked(request.version());
            let caller = Some(Rc::clone(&caller));
            Rc::clone(&worker).answer(request, Arc::clone(&its_line), answering, caller)
        });
        let mut wire = Wire::new(stream, Arc::clone(&line));
        let mut ends = pin!(self.ends(&http.limits, &line));
        let mut draining = false;
        let well = loop {
            let connection = http.http1.serve_connection(TokioIo::new(wire), service.clone());
            let mut connection = Box::pin(connection.with_upgrades());
            if draining {
                connection.as_mut().graceful_shutdown();
            }
            let mut drowsy = pin!(line.drowsy());
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => break Some(ended.is_ok()),
                    Some(end) = ends.next() => match end {
                        End::Cut => break Some(false),
                        End::Drain => {
                            draining = true;
                            connection.as_mut().graceful_shutdown();
                            ends.push(Box::pin(life.cut.cancelled().map(|()| End::Cut)));
                        }
                    },
                    () = drowsy.as_mut(), if !draining => break None,
                }
            };
            if let Some(well) = ended {
                break well;
            }
            let Some(parts) = Pin::into_inner(connection).into_parts() else {
                break true; // It was handed over to a tunnel.
            };
            wire = parts.io.into_inner();
            let begun = !parts.read_buf.is_empty();
            wire.put_back(parts.read_buf);
            if begun {
                continue; // Half of a head is there.
            }
            let woken = async {
                // What is left of the last answer may still wait in TLS.
                wire.stream().flush().await?;
                wire.stream().get_ref().0.0.readable().await
            };
            let mut woken = pin!(woken);
            let end = tokio::select! {
                biased;
                woken = woken.as_mut() => woken.err().map(|_| End::Cut),
                end = ends.next() => end,
            };
            match end {
                None => {}
                Some(End::Cut) => break false,
                Some(End::Drain) => {
                    draining = true;
                    ends.push(Box::pin(life.cut.cancelled().map(|()| End::Cut)));
                }
            }
        };
        if !well {
            line.broke_off();
        }
    }

    /// A panic is one request's: it is answered, and the connection and its worker go on.
    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        line: Arc<Line>,
        answering: Option<Answering>,
        caller: Option<Rc<Caller>>,
    ) -> Result<Response<Answer<Body>>, Infallible> {
        let (http1, life) = (request.version() < Version::HTTP_2, &line.life);
        let answer = AssertUnwindSafe(async {
            match (&life.role, &caller) {
                (_, Some(caller)) => self.inbound.answer(request, &line, caller).await,
                (Role::Client | Role::Https | Role::Backend(_) | Role::Forward(_), None) => {
                    self.outbound.answer(request, &line).await
                }
                (Role::Http, None) => match self.inbound.local(&request) {
                    Some(answer) => answer.await,
                    None => self.outbound.answer(request, &line).await,
                },
                (Role::Auth, None) => self
                    .auth
                    .borrow_mut()
                    .answer(&request, &self.shared.settings.load()),
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
}

/// How a connection ends when the client does not end it.
enum End {
    /// As soon as what is asked for was answered.
    Drain,
    /// Now.
    Cut,
}

/// Counts a connection for as long as it is open.
struct Busy {
    worker: Rc<Worker>,
    life: Arc<Life>,
    _open: TaskTrackerToken,
}

impl Busy {
    /// That the worker is busy was counted when it got the connection.
    fn new(worker: &Rc<Worker>, life: &Arc<Life>, open: TaskTrackerToken) -> Self {
        worker.pen.clients(&life.role).add(1);
        Self {
            worker: Rc::clone(worker),
            life: Arc::clone(life),
            _open: open,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.worker.pen.clients(&self.life.role).sub(1);
        self.worker.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs hyper's own tasks on the thread that asked.
#[derive(Clone, Copy)]
pub(super) struct Local;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}
