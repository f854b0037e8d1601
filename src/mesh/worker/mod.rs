//! The threads: each with one single-threaded runtime, and everything a request needs within reach.

mod http;

use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use futures_util::FutureExt;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::auth::Auth;
use super::inbound::{Accepted, Caller, Inbound};
use super::listener::{Accepting, Life};
use super::outbound::Outbound;
use super::socket::Socket;
use super::streams::Streams;
use super::tally::Pen;
use super::{Role, Shared};
use crate::names::BackendName;
use http::{Asker, Http};
pub(super) use http::{KEEP_ALIVE, LAST, Local};

/// More threads than this bring nothing: the pools get thinner.
const MAX_WORKERS: usize = 8;
/// As peers name it in the handshake; over TLS it is not spoken where it was not agreed on (RFC 9113 §3.2).
const HTTP2: &[u8] = b"h2";

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
            Role::Client => busy.during(worker.converse(Socket(stream), life, Asker::App)),
            Role::Http => busy.during(worker.converse(Socket(stream), life, Asker::AppAtFront)),
            Role::Auth => busy.during(worker.converse(Socket(stream), life, Asker::Nginx)),
            Role::Https => busy.during(worker.serve_peer(stream, life)),
            Role::Backend(ref name) => {
                let name = name.clone();
                busy.during(worker.serve_session(stream, life, name));
            }
            Role::Forward(ref name) => {
                let name = name.clone();
                busy.during(worker.serve_forward(stream, life, name));
            }
        }
    }

    /// A peer's requests. What is said after the handshake is in a box as well: it needs no room during the handshake, nor
    /// the one room for the other.
    async fn serve_peer(self: Rc<Self>, stream: tokio::net::TcpStream, life: Arc<Life>) {
        let Some((stream, caller)) = Box::pin(self.accept(stream, &life)).await else {
            return;
        };
        match stream.get_ref().1.alpn_protocol() == Some(HTTP2) {
            true => Box::pin(self.converse(stream, life, Asker::Peer(caller))).await,
            false => Box::pin(self.converse_http1(stream, life, Asker::Peer(caller))).await,
        }
    }

    /// A peer's session with a TCP backend.
    async fn serve_session(
        self: Rc<Self>,
        stream: tokio::net::TcpStream,
        life: Arc<Life>,
        name: BackendName,
    ) {
        if let Some((stream, caller)) = Box::pin(self.accept(stream, &life)).await {
            Box::pin(self.streams.inbound(stream, &caller, &name, &life)).await;
        }
    }

    /// A local app's session with what a forward leads to.
    async fn serve_forward(
        self: Rc<Self>,
        stream: tokio::net::TcpStream,
        life: Arc<Life>,
        name: BackendName,
    ) {
        self.streams.outbound(Socket(stream), &name, &life).await;
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

    /// Serves in a task of its own, and counts until that ends. The task has no more room than `serving` needs.
    fn during(self, serving: impl Future<Output = ()> + 'static) {
        spawn_local(serving.map(move |()| drop(self)));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.worker.pen.clients(&self.life.role).sub(1);
        self.worker.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
