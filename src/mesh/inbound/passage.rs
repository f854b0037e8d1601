//! One request's way to one of the addresses of its backend, and to the next one where that fails.

use std::sync::Arc;

use hyper::{Request, Response, Version};

use super::balance::Tour;
use super::{CONNECT_TIMEOUT, IDLE_TIMEOUT, Inbound};
use crate::mesh::MeshSettings;
use crate::mesh::hop::{Dial, Failure, Far, Hop, Upload, Vouch, repeatable};
use crate::mesh::line::Line;
use crate::mesh::reply::Body;
use crate::names::HostPort;
use crate::spec::Upstream;

/// One request's way to one of the addresses of its backend.
pub(super) struct Passage<'p> {
    pub(super) inbound: &'p Inbound,
    pub(super) settings: &'p MeshSettings,
    pub(super) upstream: &'p Upstream,
    pub(super) vouch: &'p Vouch,
}

impl<'p> Passage<'p> {
    /// The address to begin with, and the others.
    fn tour(&self) -> (&'p HostPort, Tour<'p, 'p>) {
        let busy = |at: &HostPort| self.inbound.backends.busy(at);
        self.inbound.balance.tour(self.upstream, busy)
    }

    fn hop(&self, at: &HostPort) -> Result<Hop, Failure> {
        let limits = &self.settings.limits;
        let dial = || Ok((Dial::Backend(at.clone()), self.inbound.meter.clone()));
        Ok(Hop {
            far: Far::Backend,
            slot: self.inbound.backends.slot(at, dial)?,
            connect_timeout: CONNECT_TIMEOUT,
            // As nginx does: a backend may think for as long as a message may stand still.
            response_timeout: limits.stall_timeout,
            idle_timeout: IDLE_TIMEOUT,
            limits: limits.clone(),
            vouch: Some(self.vouch.clone()),
        })
    }

    pub(super) async fn http1(
        &self,
        request: &mut Request<Upload>,
        line: &Arc<Line>,
    ) -> Result<Response<Body>, Failure> {
        let (mut at, mut tour) = self.tour();
        let mut hop = self.hop(at)?;
        let line = (request.version() < Version::HTTP_2).then_some(line);
        let mut asked = hop.prepare(request, line)?;
        loop {
            let spare = tour.has_more().then(|| repeatable(request)).flatten();
            let failure = match hop.carry(request, &mut asked).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let Some(next) = self.elsewhere(&failure, at, &mut tour, spare.is_some()) else {
                return Err(failure);
            };
            if let (Some(spare), false) = (spare, matches!(failure, Failure::Backend(_))) {
                *request = spare;
            }
            at = next;
            hop = self.hop(at)?;
        }
    }

    pub(super) async fn grpc(&self, request: &mut Request<Upload>) -> Result<Response<Body>, Failure> {
        let (mut at, mut tour) = self.tour();
        loop {
            match self.hop(at)?.forward_http2(request).await {
                Ok(response) => return Ok(response),
                Err(failure) => {
                    at = self.elsewhere(&failure, at, &mut tour, false).ok_or(failure)?;
                }
            }
        }
    }

    /// Another address for a request that may still be sent to one: nothing was sent, or it may be sent twice. Whether it
    /// may or not, what failed is left alone: it would have the fewest requests of all, and get the next one as well.
    fn elsewhere<'u>(
        &self,
        failure: &Failure,
        at: &HostPort,
        tour: &mut Tour<'_, 'u>,
        repeatable: bool,
    ) -> Option<&'u HostPort> {
        let again = match failure {
            Failure::Backend(_) => true,
            Failure::PeerClosed { .. } | Failure::ResponseTimeout { .. } => repeatable,
            Failure::BadResponse { .. } => false,
            _ => return None,
        };
        self.inbound.balance.failed(at, failure);
        match again {
            true => tour.next(|at| self.inbound.backends.busy(at)),
            false => None,
        }
    }
}
