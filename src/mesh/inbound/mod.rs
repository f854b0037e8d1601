//! The built-in front: what nginx does where it is the front, in this process.
//!
//! Peers come over mutual TLS; whose connection it is was read from the whole chain once, and each request is
//! authorised by what the allow-lists say at that moment. Local apps come over plain HTTP and are the outbound
//! proxy's, but for a few files.

mod api;
mod balance;
mod caller;
mod door;
mod files;
mod passage;
mod refusal;
mod routes;

use std::cell::RefCell;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::LocalBoxFuture;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::time::{self, sleep, timeout};

use super::access::{Entry, Way};
use super::hop::{Failure, Pool, Upload, connect, headers, request_id};
use super::line::Line;
use super::reply::{self, Body};
use super::socket::Socket;
use super::tally::{Meter, Pen, To};
use super::{MeshSettings, Shared};
use crate::identity::Identity;
use crate::names::{AppId, BackendName, HostPort};
use crate::spec::Upstream;
use balance::Balance;
pub(super) use caller::Caller;
use caller::{Callers, Known};
use door::Door;
pub(super) use door::{Accepted, Doors};
use passage::Passage;
use refusal::Ledger;
pub(super) use refusal::Refusal;
pub use routes::{FrontSettings, Leads, Route, Routes};

/// Where each listener tells which generation it serves.
const GENERATION: &str = "/.dstack-vpc/generation";
/// A backend is on this machine or next to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers close idle connections after 5 seconds and more: the one who closes must be us, because a POST that meets the
/// other's close is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// What becomes too old within this time is closed together.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// One worker's side of it.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    identity: RefCell<watch::Receiver<Option<Arc<Identity>>>>,
    door: RefCell<Option<Arc<Door>>>,
    callers: RefCell<Callers>,
    ledger: RefCell<Ledger>,
    backends: Pool<HostPort>,
    balance: Balance,
    meter: Meter,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, pen: &Pen) -> Self {
        let limits = &shared.settings.load().limits;
        Self {
            identity: RefCell::new(shared.identity.clone()),
            door: RefCell::default(),
            callers: RefCell::default(),
            ledger: RefCell::new(Ledger::new(pen.clone())),
            backends: Pool::new(limits, pen.clone(), To::Backend),
            balance: Balance::default(),
            meter: pen.backends(),
            shared: Arc::clone(&shared),
        }
    }

    /// What a TLS connection begins with; `None` while this machine has no certificate.
    pub(super) fn door(&self) -> Option<Arc<Door>> {
        let mut identity = self.identity.borrow_mut();
        let mut door = self.door.borrow_mut();
        // An error means that nobody will publish another identity: the last one stays.
        if door.is_none() || identity.has_changed().unwrap_or(false) {
            identity.mark_unchanged();
            *door = self.shared.doors.current(&identity);
        }
        door.clone()
    }

    /// Whose connection this is.
    pub(super) fn caller(&self, door: Arc<Door>, accepted: &Accepted) -> Caller {
        self.callers.borrow_mut().caller(door, accepted)
    }

    /// What a local app asks the front for, and not the outbound proxy.
    pub(super) fn local<B>(&self, request: &Request<B>) -> Option<LocalBoxFuture<'static, Response<Body>>> {
        let settings = self.shared.settings.load();
        let front = settings.front.as_ref()?;
        match request.uri().path() {
            GENERATION => Some(Box::pin(ready(generation(front)))),
            path => {
                let name = path.strip_prefix("/vpc/0/")?.to_owned();
                let (method, folder) = (request.method().clone(), front.files.clone());
                Some(Box::pin(
                    async move { files::answer(&method, &folder, &name).await },
                ))
            }
        }
    }

    /// Answers a peer's request, whatever happens.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        line: &Arc<Line>,
        caller: &Caller,
    ) -> Response<Body> {
        let began = Instant::now();
        let settings = self.shared.settings.load();
        let last = match settings.front {
            Some(_) => None,
            None => self.shared.last_front.load_full(),
        };
        let Some(front) = settings.front.as_ref().or(last.as_deref()) else {
            return Failure::Internal.reply(None);
        };
        match request.uri().path() {
            "/health" => return reply::text("OK"),
            GENERATION => return generation(front),
            _ => {}
        }
        let (parts, body) = request.into_parts();
        let id = request_id::of(&parts.headers);
        let patience = settings.limits.continue_timeout;
        let body = Upload::new(body, line, parts.version, &parts.headers, patience);
        let grpc = headers::is_grpc(&parts.headers);
        let entry = settings.access_log.then(|| {
            let route = front.routes.of(&parts.uri, &parts.headers);
            let app = self.known(caller).ok().map(Known::app);
            let way = Way::In(app, route.map(|route| route.backend.clone()));
            Entry::new(began, &id, way, &parts, body.progress())
        });
        let mut request = Request::from_parts(parts, body);
        let route = self.route(&request, caller, front, &settings);
        let mut failed = None;
        let answer = match route {
            Ok((route, known)) => {
                request.headers_mut().insert(request_id::NAME, id.clone());
                let waiting = self.meter.waiting();
                let passage = |upstream| Passage {
                    inbound: self,
                    settings: &settings,
                    upstream,
                    vouch: &known.vouch,
                };
                let answer = match &route.leads {
                    Leads::ToApi => Box::pin(self.api(&mut request, known.app())).await,
                    // A backend that is called with gRPC reads nothing but HTTP/2, whatever the call came over.
                    Leads::To(upstream) if grpc => Box::pin(passage(upstream).grpc(&mut request)).await,
                    Leads::To(upstream) => passage(upstream).http1(&mut request, line).await,
                };
                match answer {
                    Ok(response) => {
                        waiting.answered(response.status(), began.elapsed());
                        response
                    }
                    Err(failure) => {
                        waiting.failed(failure.code().name());
                        failed = Some(failure.code().name());
                        match grpc {
                            true => failure.as_grpc(&id),
                            false => failure.reply(Some(&id)),
                        }
                    }
                }
            }
            Err(refusal) => {
                failed = Some(refusal.cause().name());
                refusal.reply(&id, grpc)
            }
        };
        // What was sent was taken out; what is still there is a refused request's.
        if !request.body().is_none() {
            Box::pin(request.into_body().discard()).await;
        }
        match entry {
            Some(entry) => entry.answered(answer, failed),
            None => answer,
        }
    }

    /// Where a request goes, and whose it is.
    fn route<'s, B>(
        &self,
        request: &Request<B>,
        caller: &'s Caller,
        front: &'s FrontSettings,
        settings: &MeshSettings,
    ) -> Result<(&'s Route, &'s Known), Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Failure::Connect.into());
        }
        headers::check_framing(request.headers(), settings.limits.headers)?;
        let route = front.routes.of(request.uri(), request.headers());
        let backend = route.map(|route| &route.backend);
        let mut ledger = self.ledger.borrow_mut();
        let decisions = ledger.of(backend);
        let decided = self.known(caller).and_then(|known| {
            let route = route.ok_or(Refusal::NoBackend)?;
            may_call(settings, &route.backend, known.app())?;
            Ok((route, known))
        });
        match &decided {
            Ok(_) => decisions.allowed.add(1),
            Err(refusal) => decisions.denied.add(refusal.cause().name()),
        }
        decided
    }

    /// The caller, if it is known who that is.
    fn known<'c>(&self, caller: &'c Caller) -> Result<&'c Known, Refusal> {
        let door = self.door().ok_or(Refusal::NotServed)?;
        caller.known(&door, SystemTime::now()).map_err(Refusal::Caller)
    }

    /// Whose session of a TCP backend it is, if it may have one.
    pub(super) fn admit(&self, caller: &Caller, backend: &BackendName) -> Result<AppId, Refusal> {
        let settings = self.shared.settings.load();
        let decided = self.known(caller).and_then(|known| {
            may_call(&settings, backend, known.app())?;
            Ok(known.app())
        });
        let mut ledger = self.ledger.borrow_mut();
        match &decided {
            Ok(_) => ledger.of(Some(backend)).allowed.add(1),
            Err(refusal) => ledger.of(Some(backend)).denied.add(refusal.cause().name()),
        }
        decided
    }

    /// A connection to the first address that takes one; `busy`: how many sessions an address has.
    pub(super) async fn connect<'u>(
        &self,
        upstream: &'u Upstream,
        busy: impl Fn(&HostPort) -> usize,
    ) -> Result<(Socket, &'u HostPort), Failure> {
        let (mut at, mut tour) = self.balance.tour(upstream, &busy);
        loop {
            let connected = timeout(CONNECT_TIMEOUT, connect::backend(at)).await;
            let late = |_| Err(Failure::Backend(io::ErrorKind::TimedOut.into()));
            let failure = match connected.unwrap_or_else(late) {
                Ok(socket) => return Ok((socket, at)),
                Err(failure) => failure,
            };
            self.balance.failed(at, &failure);
            at = tour.next(&busy).ok_or(failure)?;
        }
    }

    /// Closes idle connections when it is time, until the worker ends.
    pub(super) async fn keep_house(self: std::rc::Rc<Self>) {
        // What begins to wait from now on is not due before that.
        let mut pause = IDLE_TIMEOUT;
        loop {
            sleep(pause).await;
            let settings = self.shared.settings.load();
            let due = self.backends.sweep(IDLE_TIMEOUT, &settings.limits);
            self.balance.forget();
            let due = due.map_or(IDLE_TIMEOUT, |due| due - time::Instant::now());
            pause = due.clamp(SHORTEST_PAUSE, IDLE_TIMEOUT);
        }
    }
}

fn may_call(settings: &MeshSettings, backend: &BackendName, app: AppId) -> Result<(), Refusal> {
    let allowed = settings.backends.get(backend);
    match allowed.is_some_and(|allowed| allowed.allows(&app)) {
        true => Ok(()),
        false => Err(Refusal::NotAllowed(app)),
    }
}

/// For whoever wants to see that a change is live: a connection more says nothing about the next one.
fn generation(front: &FrontSettings) -> Response<Body> {
    let mut answer = reply::own(StatusCode::OK, "text/plain", front.tag.clone().into());
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
