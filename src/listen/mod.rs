//! Where the VPC API, the metrics and the status page are served: connections with limits, moved without a gap, drained at the end.

mod inside;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Json, Router};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::mesh::{self, BindError};
pub use inside::Inside;
pub(crate) use inside::Verified;

/// Between two requests, and for the head of one. Above the 60 s after which nginx closes an idle connection itself,
/// so that it never writes into one that we are just closing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// The head of a request, in bytes.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
/// Nothing here wants a body; what comes is read and dropped, so that the connection can be used again.
const MAX_BODY: usize = 64 * 1024;
const TOO_LARGE: &str = "a request's body may have 65536 bytes at most; parameters belong into the query";
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause when the process is out of file descriptors, so that the accept loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a listener that was stopped lets requests end. Those that wait for news end at once; what is left is a
/// registration that waits for Headscale.
const DRAIN: Duration = Duration::from_secs(15);
/// How long a silent connection is left open after its listener was stopped: a request may be on its way.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Cancelled when the listener that a request came through stops; goes with each request.
#[derive(Clone)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// What is served, and to how many.
#[derive(Clone)]
pub(crate) struct Site {
    /// The key of `vpc.toml` that names the address.
    pub(crate) key: &'static str,
    /// Connections that are open at once; more wait until they are accepted.
    pub(crate) most: usize,
    pub(crate) router: Router,
}

/// The listener, and those that it replaced.
pub(crate) struct Listeners {
    site: Site,
    live: Listener,
    /// Moved away from, but accepting until they are retired: whoever calls them has not followed yet.
    left: Vec<Listener>,
    /// Serving only what they had accepted.
    draining: Vec<Listener>,
}

impl Listeners {
    /// # Errors
    /// The address cannot be opened.
    pub(crate) fn start(addr: SocketAddr, site: Site) -> Result<Self, BindError> {
        Ok(Self {
            live: Listener::open(addr, &site)?,
            left: Vec::new(),
            draining: Vec::new(),
            site,
        })
    }

    /// Where it listens; with port 0 configured, this is the only place that tells.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.live.addr
    }

    /// Opens at `addr`; where it was goes on accepting until [`Listeners::retire`].
    ///
    /// # Errors
    /// Then it listens where it did.
    pub(crate) async fn move_to(&mut self, addr: SocketAddr) -> Result<(), BindError> {
        let next = match self.left.iter().position(|left| left.addr == addr) {
            Some(at) => self.left.swap_remove(at),
            None => match Listener::open(addr, &self.site) {
                Err(BindError::Taken { .. }) => self.make_way(addr).await?,
                opened => opened?,
            },
        };
        self.draining.retain(|listener| !listener.task.is_finished());
        let old = std::mem::replace(&mut self.live, next);
        match old.stop.is_cancelled() {
            true => self.draining.push(old),
            false => self.left.push(old),
        }
        Ok(())
    }

    /// The address may be held by one of ours (`0.0.0.0` and `127.0.0.1` cannot be had together): then that goes first.
    async fn make_way(&mut self, addr: SocketAddr) -> Result<Listener, BindError> {
        let in_the_way: Vec<Listener> = self
            .left
            .extract_if(.., |left| left.addr.port() == addr.port())
            .collect();
        for listener in in_the_way {
            listener.close().await;
            self.draining.push(listener);
        }
        if self.live.addr.port() == addr.port() {
            self.live.close().await;
        }
        let opened = Listener::open(addr, &self.site);
        if opened.is_err() && self.live.stop.is_cancelled() {
            match Listener::open(self.live.addr, &self.site) {
                Ok(again) => self.draining.push(std::mem::replace(&mut self.live, again)),
                Err(error) => tracing::error!(%error, "a listener that made way cannot be opened again"),
            }
        }
        opened
    }

    /// Whether it listens there.
    pub(crate) fn is_at(&self, addr: SocketAddr) -> bool {
        self.live.addr == addr && !self.live.stop.is_cancelled()
    }

    /// Where it is not `wanted` nobody listens when this returns; what was accepted goes on.
    pub(crate) async fn leave(&self, wanted: Option<SocketAddr>) {
        let all = self.left.iter().chain([&self.live]);
        for listener in all.filter(|it| Some(it.addr) != wanted) {
            listener.close().await;
        }
    }

    /// What was moved away from accepts nothing more.
    pub(crate) fn retire(&mut self) {
        self.left.iter().for_each(|listener| listener.stop.cancel());
        self.draining.append(&mut self.left);
    }

    /// Stops and drains all.
    pub(crate) async fn close(&mut self) {
        self.retire();
        self.live.stop.cancel();
        let all = self.draining.iter_mut().chain([&mut self.live]);
        for listener in all {
            if let Err(error) = (&mut listener.task).await {
                tracing::error!(%error, key = self.site.key, "a listener ended badly");
            }
        }
        self.draining.clear();
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        let all = self.left.iter().chain(&self.draining).chain([&self.live]);
        all.for_each(|listener| {
            listener.stop.cancel();
            listener.cut.cancel();
        });
    }
}

struct Listener {
    addr: SocketAddr,
    /// Accept nothing more; finish what was begun.
    stop: CancellationToken,
    /// Cut what is still open.
    cut: CancellationToken,
    /// Cancelled when the address is free.
    closed: CancellationToken,
    /// Ends with the last connection.
    task: JoinHandle<()>,
}

impl Listener {
    fn open(addr: SocketAddr, site: &Site) -> Result<Self, BindError> {
        let key = site.key;
        let failed = |source: io::Error| BindError::Failed { key, addr, source };
        let socket = TcpListener::from_std(mesh::open(key, addr)?).map_err(failed)?;
        let addr = socket.local_addr().map_err(failed)?;
        let (stop, cut, closed) = Default::default();
        let door = Door {
            site: site.clone(),
            room: Arc::new(Semaphore::new(site.most)),
            stop: CancellationToken::clone(&stop),
            cut: CancellationToken::clone(&cut),
            tasks: TaskTracker::new(),
        };
        let task = tokio::spawn(door.run(socket, CancellationToken::clone(&closed)));
        Ok(Self {
            addr,
            stop,
            cut,
            closed,
            task,
        })
    }

    /// Stops it and waits until its address is free.
    async fn close(&self) {
        self.stop.cancel();
        self.closed.cancelled().await;
    }
}

struct Door {
    site: Site,
    room: Arc<Semaphore>,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Door {
    async fn run(self, socket: TcpListener, closed: CancellationToken) {
        // A guard, so that nobody waits for ever should this panic.
        let closed = closed.drop_guard();
        tokio::select! {
            () = self.accept(&socket) => {}
            () = self.stop.cancelled() => self.accept_waiting(&socket),
        }
        drop(socket);
        drop(closed);
        self.tasks.close();
        if timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::info!(
                key = self.site.key,
                open = self.tasks.len(),
                "cutting what did not end in time"
            );
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }

    async fn accept(&self, socket: &TcpListener) {
        loop {
            // Never closed, so this never fails.
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            match socket.accept().await {
                Ok((stream, _)) => self.let_in(stream, permit),
                // The caller was gone before we looked.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, key = self.site.key, "a connection cannot be accepted");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// What was connected before the stop would be reset by closing the socket.
    fn accept_waiting(&self, socket: &TcpListener) {
        while let Ok(permit) = Arc::clone(&self.room).try_acquire_owned()
            && let Some(Ok((stream, _))) = socket.accept().now_or_never()
        {
            self.let_in(stream, permit);
        }
    }

    fn let_in(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // Without it answers are slower, nothing else.
        let _ = stream.set_nodelay(true);
        let (router, stop, cut) = (self.site.router.clone(), self.stop.clone(), self.cut.clone());
        self.tasks.spawn(async move {
            serve(stream, router, stop, cut).await;
            drop(permit);
        });
    }
}

/// One connection, from its first byte to its last.
async fn serve(stream: TcpStream, router: Router, stop: CancellationToken, cut: CancellationToken) {
    let stopping = Stopping(stop.clone());
    let service = service_fn(move |request| answer_last(router.clone(), stopping.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // How a connection ends is the client's affair: what matters to it was answered in HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
    }
    // Closing an idle connection at once would meet the request that is just being written into it.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(IDLE_GRACE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = cut.cancelled() => {}
    }
}

/// Answers; when the listener has stopped, for the last time on this connection.
async fn answer_last(
    router: Router,
    stopping: Stopping,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let is_stopping = stopping.0.clone();
    let mut answer = answer(router, stopping, request).await;
    if is_stopping.is_cancelled() {
        let close = hyper::header::HeaderValue::from_static("close");
        answer.headers_mut().insert(hyper::header::CONNECTION, close);
    }
    Ok(answer)
}

/// A panic is one request's: it is answered, and the others go on.
async fn answer<B>(router: Router, stopping: Stopping, request: Request<B>) -> Response
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let answer = async {
        let (mut head, body) = request.into_parts();
        match timeout(BODY_TIMEOUT, to_bytes(Body::new(body), MAX_BODY)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return refusal(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE),
            Err(_) => {
                return refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request's body did not come in time",
                );
            }
        }
        head.extensions.insert(stopping);
        let request = Request::from_parts(head, Body::empty());
        match hyper::service::Service::call(&TowerToHyperService::new(router), request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "an error of this server; its log says more",
        )
    })
}

fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}
