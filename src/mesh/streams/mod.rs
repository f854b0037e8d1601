//! TCP as it is: peers that come to a TCP backend, and local apps that another app is reached for by a forward. What they
//! say is nobody's business here; who it is said to, and by whom, is settled before the first byte is passed on.

mod join;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::hop::Failure;
use super::inbound::{Accepted, Caller, Inbound};
use super::listener::Life;
use super::outbound::{Outbound, Target};
use super::socket::Socket;
use super::tally::{Pen, Sessions};
use super::wire::Reset;
use super::{Role, Shared};
use crate::codes::Code;
use crate::log;
use crate::names::{AppId, BackendName, HostPort, InstanceId};
use crate::spec::Upstream;
use join::{Scratch, join};

/// A backend that peers reach over TCP. Who may is in [`super::MeshSettings::backends`].
#[derive(Debug, Clone, PartialEq)]
pub struct TcpBackend {
    pub listen: SocketAddr,
    pub upstream: Upstream,
}

/// A local port that leads to another app.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    pub listen: SocketAddr,
    /// Whose certificate it must be.
    pub app: AppId,
    /// Only this instance; `None`: whichever the gateway picks.
    pub instance: Option<InstanceId>,
    pub port: u16,
}

/// One worker's side of it.
pub(super) struct Streams {
    shared: Arc<Shared>,
    inbound: Rc<Inbound>,
    outbound: Rc<Outbound>,
    pen: Pen,
    /// Sessions of each upstream.
    busy: RefCell<HashMap<HostPort, usize>>,
    /// Forwards that lead nowhere for now, and why.
    failing: RefCell<HashMap<BackendName, &'static str>>,
    scratch: Scratch,
}

impl Streams {
    pub(super) fn new(
        shared: &Arc<Shared>,
        pen: &Pen,
        inbound: &Rc<Inbound>,
        outbound: &Rc<Outbound>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            inbound: Rc::clone(inbound),
            outbound: Rc::clone(outbound),
            pen: pen.clone(),
            busy: RefCell::default(),
            failing: RefCell::default(),
            scratch: Scratch::new(),
        }
    }

    /// A peer's session with a backend, from the handshake to its end.
    pub(super) async fn inbound(&self, peer: Accepted, caller: &Caller, name: &BackendName, life: &Life) {
        let mut session = self.session(life);
        let app = match self.inbound.admit(caller, name) {
            Ok(app) => app,
            Err(refusal) => {
                tracing::debug!(backend = %name, code = refusal.cause().name(), "a peer was refused: {refusal}");
                session.outcome = refusal.cause().name();
                return;
            }
        };
        session.app = Some(app);
        let settings = self.shared.settings.load_full();
        let Some(backend) = settings.tcp_backends.get(name) else {
            // It was taken out during the handshake.
            session.outcome = Code::NotServed.name();
            return;
        };
        let busy = |at: &HostPort| self.busy.borrow().get(at).copied().unwrap_or(0);
        let connecting = Box::pin(self.inbound.connect(&backend.upstream, busy));
        let connected = tokio::select! {
            connected = connecting => connected,
            () = life.cut.cancelled() => return,
        };
        match connected {
            Ok((upstream, at)) => {
                let _taken = Taken::new(&self.busy, at.clone());
                let idle = settings.limits.tcp_idle_timeout;
                drop(settings);
                let end = join(peer, upstream, &session, idle, &life.cut, &self.scratch).await;
                session.outcome = end.code().name();
            }
            Err(failure) => {
                tracing::debug!(backend = %name, code = failure.code().name(), "{failure}");
                session.outcome = failure.code().name();
                peer.reset();
            }
        }
    }

    /// A local app's session with the app that a forward leads to.
    pub(super) async fn outbound(&self, client: Socket, name: &BackendName, life: &Life) {
        let mut session = self.session(life);
        let settings = self.shared.settings.load_full();
        let Some(forward) = settings.forwards.get(name) else {
            session.outcome = Code::NotServed.name();
            return;
        };
        session.app = Some(forward.app);
        let idle = settings.limits.tcp_idle_timeout;
        let target = Target::proven(forward.app, forward.instance, forward.port);
        drop(settings);
        let connected = tokio::select! {
            connected = Box::pin(self.outbound.connect(&target)) => connected,
            () = life.cut.cancelled() => return,
        };
        self.tell(name, connected.as_ref().err());
        match connected {
            Ok((peer, _open)) => {
                let end = join(client, peer, &session, idle, &life.cut, &self.scratch).await;
                session.outcome = end.code().name();
            }
            Err(failure) => {
                session.outcome = failure.code().name();
                client.reset();
            }
        }
    }

    /// The client cannot be told why it is cut off, so the log is. Once, for drivers try again and again.
    fn tell(&self, name: &BackendName, failure: Option<&Failure>) {
        let mut failing = self.failing.borrow_mut();
        match failure {
            None => drop(failing.remove(name)),
            Some(failure) => {
                if failing.insert(name.clone(), failure.code().name()) != Some(failure.code().name()) {
                    tracing::warn!(forward = %name, code = failure.code().name(), "a forward leads nowhere: {failure}");
                }
            }
        }
    }

    fn session<'l>(&self, life: &'l Life) -> Session<'l> {
        let counts = self.pen.sessions(&life.role);
        counts.open.add(1);
        Session {
            role: &life.role,
            began: Instant::now(),
            logged: self.shared.settings.load().access_log,
            counts,
            app: None,
            outcome: Code::Cut.name(),
            received: Cell::new(0),
            sent: Cell::new(0),
        }
    }
}

/// A session, or the attempt at one. It is counted when this is dropped, and logged where that is wished.
struct Session<'l> {
    role: &'l Role,
    began: Instant,
    logged: bool,
    counts: Arc<Sessions>,
    /// Who calls, or who is called.
    app: Option<AppId>,
    outcome: &'static str,
    /// In bytes: from whoever connected, and to it.
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Session<'_> {
    fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        self.counts.received.add(bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
        self.counts.sent.add(bytes as u64);
    }

    /// All that moved.
    fn bytes(&self) -> u64 {
        self.received.get() + self.sent.get()
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.counts.open.sub(1);
        self.counts.ended.add(self.outcome);
        if self.logged {
            tracing::info!(
                target: log::ACCESS,
                listener = self.role.key(),
                name = self.role.name(),
                app = self.app.map(tracing::field::display),
                outcome = self.outcome,
                received_bytes = self.received.get(),
                sent_bytes = self.sent.get(),
                duration_ms = self.began.elapsed().as_micros() as f64 / 1000.0,
                "session"
            );
        }
    }
}

/// A session that an upstream has.
struct Taken<'s> {
    busy: &'s RefCell<HashMap<HostPort, usize>>,
    at: HostPort,
}

impl<'s> Taken<'s> {
    fn new(busy: &'s RefCell<HashMap<HostPort, usize>>, at: HostPort) -> Self {
        *busy.borrow_mut().entry(at.clone()).or_default() += 1;
        Self { busy, at }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut busy = self.busy.borrow_mut();
        if let Some(count) = busy.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.at);
            }
        }
    }
}
