//! The outbound proxy: from a local app to the app it names, over mutual TLS.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod local;
mod reach;
mod target;
mod tls;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode, Version};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time;

use super::access::{Entry, Way};
use super::hop::{
    Dial, Endpoint, Failure, Far, HOUSEKEEPING, Hop, Pool, Slot, Upload, connect, headers, request_id,
};
use super::line::Line;
use super::reply::{self, Body};
use super::tally::{Held, Meter, Pen, To};
use super::{MeshSettings, Shared};
use crate::identity::Identity;
use crate::spec::{AgentAddr, Gateway};
pub(crate) use reach::reach;
pub(super) use target::Target;
use tls::Credentials;
pub(crate) use tls::without_identity;

const HTTP1: &[&[u8]] = &[b"http/1.1"];
const HTTP2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// One worker's side of it.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    identity: RefCell<watch::Receiver<Option<Arc<Identity>>>>,
    era: RefCell<Rc<Era>>,
    agents: Pool<AgentAddr>,
    pen: Pen,
    /// For what is answered here.
    here: Meter,
}

/// Who answers a request.
enum Route {
    /// We did.
    Here(Response<Body>),
    /// Whoever is over there.
    Over(Hop),
}

/// What holds for as long as identity and gateway stay the same. With a new one every pooled connection and every TLS
/// session is left behind, and requests that are under way end on the old ones.
struct Era {
    gateway: Option<Gateway>,
    credentials: Option<Credentials>,
    peers: Pool<Target>,
    /// How to come to the targets of forwards.
    streams: RefCell<HashMap<Target, (Endpoint, Arc<ClientConfig>)>>,
    pen: Pen,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, pen: Pen) -> Self {
        let mut identity = shared.identity.clone();
        let settings = shared.settings.load_full();
        let era = Era::new(&settings, &mut identity, &pen);
        Self {
            shared,
            identity: RefCell::new(identity),
            era: RefCell::new(Rc::new(era)),
            agents: Pool::new(&settings.limits, pen.clone(), To::Agent),
            here: pen.here(),
            pen,
        }
    }

    /// Answers a request, whatever happens.
    pub(super) async fn answer(&self, request: Request<Incoming>, line: &Arc<Line>) -> Response<Body> {
        let began = Instant::now();
        let (parts, body) = request.into_parts();
        let id = request_id::of(&parts.headers);
        let settings = self.shared.settings.load();
        let patience = settings.limits.continue_timeout;
        let body = Upload::new(body, line, parts.version, &parts.headers, patience);
        let entry = settings
            .access_log
            .then(|| Entry::new(began, &id, Way::out(&parts.headers), &parts, body.progress()));
        let grpc = parts.version == Version::HTTP_2 && headers::is_grpc(&parts.headers);
        let mut request = Request::from_parts(parts, body);
        let route = self.route(&mut request, &settings);
        drop(settings);
        let answer = match route {
            Ok(Route::Here(response)) => {
                self.here.waiting().answered(response.status(), began.elapsed());
                Ok(response)
            }
            Ok(Route::Over(hop)) => {
                request.headers_mut().insert(request_id::NAME, id.clone());
                let waiting = hop.slot.meter.waiting();
                // Each connection keeps room for the largest future here. What is not everybody's is put elsewhere.
                let answer = match request.version() {
                    Version::HTTP_2 => Box::pin(hop.forward_http2(&mut request)).await,
                    _ => hop.forward(&mut request, Some(line)).await,
                };
                match &answer {
                    Ok(response) => waiting.answered(response.status(), began.elapsed()),
                    Err(failure) => waiting.failed(failure.code().name()),
                }
                answer
            }
            Err(failure) => {
                self.meter_of(request.headers())
                    .waiting()
                    .failed(failure.code().name());
                Err(failure)
            }
        };
        // What was sent was taken out; what is still there is a refused request's.
        if !request.body().is_none() {
            Box::pin(request.into_body().discard()).await;
        }
        let failed = answer.as_ref().err().map(|failure| failure.code().name());
        let answer = answer.unwrap_or_else(|failure| match grpc {
            true => failure.as_grpc(&id),
            false => failure.reply(Some(&id)),
        });
        match entry {
            Some(entry) => entry.answered(answer, failed),
            None => answer,
        }
    }

    /// Whose a request is that could not be routed.
    fn meter_of(&self, headers: &HeaderMap) -> Meter {
        match Target::of(headers) {
            Ok(Some(target)) => self.pen.target(target.app),
            Ok(None) | Err(_) => self.here.clone(),
        }
    }

    fn route<B>(&self, request: &mut Request<B>, settings: &MeshSettings) -> Result<Route, Failure> {
        if request.method() == Method::CONNECT {
            return Err(Failure::Connect);
        }
        headers::check_framing(request.headers(), settings.limits.headers)?;
        let Some(target) = Target::of(request.headers())? else {
            return self.local(request, settings);
        };
        if headers::is_last_hop(request) {
            return Ok(Route::Here(reply::empty(StatusCode::NO_CONTENT)));
        }
        Ok(Route::Over(Hop {
            far: Far::Target,
            slot: self.era(settings).slot(&target)?,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            idle_timeout: settings.idle_timeout,
            limits: settings.limits.clone(),
            vouch: None,
        }))
    }

    /// A connection for bytes as they are. Whoever is there has proved to be the target's app.
    pub(super) async fn connect(&self, target: &Target) -> Result<(connect::Connected, Held), Failure> {
        let settings = self.shared.settings.load_full();
        let (endpoint, config) = self.era(&settings).stream(target)?;
        let meter = self.pen.target(target.app);
        let patience = settings.connect_timeout;
        let connecting = connect::peer(
            &endpoint,
            &config,
            &meter,
            time::Instant::now() + patience,
            patience,
        );
        Ok((connecting.await?, meter.open()))
    }

    fn era(&self, settings: &MeshSettings) -> Rc<Era> {
        let mut identity = self.identity.borrow_mut();
        // An error means that nobody will publish another identity: the last one stays.
        let renewed = identity.has_changed().unwrap_or(false);
        let mut era = self.era.borrow_mut();
        if renewed || era.gateway != settings.gateway {
            *era = Rc::new(Era::new(settings, &mut identity, &self.pen));
        }
        Rc::clone(&era)
    }

    /// Closes idle connections in time, until the worker ends.
    pub(super) async fn keep_house(self: Rc<Self>) {
        loop {
            time::sleep(HOUSEKEEPING).await;
            let settings = self.shared.settings.load();
            let (idle, limits) = (settings.idle_timeout, &settings.limits);
            self.era(&settings).peers.sweep(idle, limits);
            self.agents.sweep(idle, limits);
        }
    }
}

impl Era {
    fn new(
        settings: &MeshSettings,
        identity: &mut watch::Receiver<Option<Arc<Identity>>>,
        pen: &Pen,
    ) -> Self {
        let identity = identity.borrow_and_update().clone();
        let credentials = identity.and_then(|identity| {
            Credentials::new(&identity)
                .inspect_err(|error| tracing::error!(dir = %identity.dir.display(), %error, "the certificate cannot be used"))
                .ok()
        });
        Self {
            gateway: settings.gateway.clone(),
            credentials,
            peers: Pool::new(&settings.limits, pen.clone(), To::Peer),
            streams: RefCell::default(),
            pen: pen.clone(),
        }
    }

    /// For TCP: no protocol is named, and each target has its own sessions to take up again.
    fn stream(&self, target: &Target) -> Result<(Endpoint, Arc<ClientConfig>), Failure> {
        if let Some(known) = self.streams.borrow().get(target) {
            return Ok(known.clone());
        }
        let gateway = self.gateway.as_ref().ok_or(Failure::GatewayUnknown)?;
        let credentials = self.credentials.as_ref().ok_or(Failure::NoIdentity)?;
        let config = credentials
            .config(target.app, &[])
            .map_err(|_| Failure::Internal)?;
        let made = (target.endpoint(gateway)?, config);
        self.streams.borrow_mut().insert(*target, made.clone());
        Ok(made)
    }

    fn slot(&self, target: &Target) -> Result<Rc<Slot>, Failure> {
        self.peers.slot(target, || {
            let gateway = self.gateway.as_ref().ok_or(Failure::GatewayUnknown)?;
            let endpoint = target.endpoint(gateway)?;
            let config = |protocols| {
                if !target.end_to_end {
                    return tls::without_identity(protocols).map_err(|_| Failure::Internal);
                }
                let credentials = self.credentials.as_ref().ok_or(Failure::NoIdentity)?;
                credentials
                    .config(target.app, protocols)
                    .map_err(|_| Failure::Internal)
            };
            let dial = Dial::Peer {
                endpoint,
                http1: config(HTTP1)?,
                http2: config(HTTP2)?,
            };
            Ok((dial, self.pen.target(target.app)))
        })
    }
}
