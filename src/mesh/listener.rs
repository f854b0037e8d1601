//! One listening socket: opened, accepted from, moved away from.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::worker::{Crew, Job};
use super::{BindError, Role, Shared, reply};

/// Connections the kernel keeps for us until we accept them.
const BACKLOG: i32 = 4096;
/// Pause when the process is out of file descriptors, so that the accept loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a retired listener goes on accepting: workers of nginx that are about to end still ask where it was, for
/// clients that had just connected.
const LINGER: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) addr: SocketAddr,
    /// `[::]` is for IPv6 alone, and otherwise for IPv4 as well, whatever the system's default.
    pub(crate) only_ipv6: bool,
}

impl From<SocketAddr> for Place {
    fn from(addr: SocketAddr) -> Self {
        let only_ipv6 = false;
        Self { addr, only_ipv6 }
    }
}

/// An open socket that nobody accepts from yet.
pub(super) struct Bound {
    pub(super) role: Role,
    place: Place,
    socket: std::net::TcpListener,
}

/// Opens the place that `key` names. There is one socket for all workers: with `SO_REUSEPORT` two programs could
/// share a port unnoticed.
pub(crate) fn open(key: &'static str, place: impl Into<Place>) -> Result<std::net::TcpListener, BindError> {
    let Place { addr, only_ipv6 } = place.into();
    let open = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(only_ipv6)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    open().map_err(|source| BindError::new(key, addr, source))
}

pub(super) fn bind(role: Role, mut place: Place) -> Result<Bound, BindError> {
    let socket = open(role.key(), place)?;
    place.addr = socket
        .local_addr()
        .map_err(|source| BindError::new(role.key(), place.addr, source))?;
    Ok(Bound { role, place, socket })
}

/// What the connections of one listener live under.
pub(super) struct Life {
    pub(super) role: Role,
    /// Nobody is meant to come here any more, and soon nobody can.
    retired: CancellationToken,
    /// Accept nothing more; finish what was begun.
    pub(super) stop: CancellationToken,
    /// Cut what is still open.
    pub(super) cut: CancellationToken,
    /// Connections and tunnels.
    pub(super) tasks: TaskTracker,
}

impl Life {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            retired: CancellationToken::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Waits until nothing more is accepted.
    async fn over(&self) {
        let lingered = async {
            self.retired.cancelled().await;
            sleep(LINGER).await;
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = lingered => self.stop.cancel(),
        }
    }
}

/// A socket that is accepted from, or was.
pub(super) struct Listener {
    pub(super) place: Place,
    life: Arc<Life>,
    closed: CancellationToken,
    done: CancellationToken,
}

impl Listener {
    /// Accepts on one worker and hands the connections to whichever worker has the fewest.
    pub(super) fn start(bound: Bound, crew: &Crew) -> Self {
        let listener = Self {
            place: bound.place,
            life: Arc::new(Life::new(bound.role.clone())),
            closed: CancellationToken::new(),
            done: CancellationToken::new(),
        };
        crew.first(Job::Accept(Accepting {
            bound,
            crew: crew.clone(),
            life: Arc::clone(&listener.life),
            closed: listener.closed.clone(),
            done: listener.done.clone(),
        }));
        listener
    }

    pub(super) fn role(&self) -> &Role {
        &self.life.role
    }

    /// Stops in a little while.
    pub(super) fn retire(&self) {
        self.life.retired.cancel();
    }

    /// Accepts nothing more. What it had accepted goes on for as long as it likes.
    pub(super) fn stop(&self) {
        self.life.stop.cancel();
    }

    /// Ends what is still open.
    pub(super) fn cut(&self) {
        if !self.is_done() {
            tracing::info!(
                key = self.role().key(),
                name = self.role().name(),
                open = self.life.tasks.len(),
                "cutting what did not end in time"
            );
        }
        self.life.cut.cancel();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.life.stop.is_cancelled()
    }

    /// Waits until a stopped listener's address is free.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Waits until a stopped listener has let go of its last connection.
    pub(super) async fn done(&self) {
        self.done.cancelled().await;
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.is_cancelled()
    }
}

/// The accept loop, on its way to the worker that runs it.
pub(super) struct Accepting {
    bound: Bound,
    crew: Crew,
    life: Arc<Life>,
    closed: CancellationToken,
    done: CancellationToken,
}

impl Accepting {
    /// Runs until the listener is stopped and its last connection is gone.
    pub(super) async fn run(self, shared: Arc<Shared>) {
        // Guards, so that nobody waits for ever should this panic.
        let _done = self.done.drop_guard();
        let closed = self.closed.drop_guard();
        let gate = Gate {
            crew: self.crew,
            life: Arc::clone(&self.life),
            shared,
            full: Cell::new(false),
        };
        match TcpListener::from_std(self.bound.socket) {
            Ok(socket) => tokio::select! {
                () = gate.accept(&socket) => {}
                () = gate.life.over() => gate.accept_waiting(&socket).await,
            },
            Err(error) => {
                tracing::error!(%error, key = self.bound.role.key(), "the listener cannot be polled")
            }
        }

        drop(closed);
        self.life.tasks.close();
        self.life.tasks.wait().await;
    }
}

/// Lets connections in, or sends them away.
struct Gate {
    crew: Crew,
    life: Arc<Life>,
    shared: Arc<Shared>,
    /// The last one was sent away.
    full: Cell<bool>,
}

impl Gate {
    async fn accept(&self, socket: &TcpListener) {
        loop {
            match socket.accept().await {
                Ok((stream, _)) => self.let_in(stream),
                // The caller was gone before we looked.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, key = self.life.role.key(), "a connection cannot be accepted");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// What was connected before the stop would be reset by closing the socket.
    async fn accept_waiting(&self, socket: &TcpListener) {
        let mut accept = pin!(socket.accept());
        while let Poll::Ready(Ok((stream, _))) = futures_util::poll!(accept.as_mut()) {
            self.let_in(stream);
            accept.set(socket.accept());
        }
    }

    fn let_in(&self, stream: TcpStream) {
        let most = self.shared.settings.load().limits.connections;
        let full = self.life.tasks.len() >= self.shared.room.min(most.into());
        if full && !self.full.get() {
            tracing::warn!(
                key = self.life.role.key(),
                name = self.life.role.name(),
                open = self.life.tasks.len(),
                "connections are refused until others end; see limits.connections and the limit of open files"
            );
        }
        self.full.set(full);
        // It fails for a connection that is already gone.
        match stream.into_std() {
            Ok(stream) if full && !self.life.role.is_plain_http() => drop(stream),
            Ok(mut stream) if full => drop(stream.write(reply::FULL.as_bytes())),
            Ok(stream) => {
                let (life, open) = (Arc::clone(&self.life), self.life.tasks.token());
                self.crew.least_busy(Job::Serve(stream, life, open));
            }
            Err(_) => {}
        }
    }
}
