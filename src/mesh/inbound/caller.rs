//! Whose connection it is: read once from the whole chain, checked again for each request as far as time goes on.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};

use super::door::{Accepted, Door};
use crate::codes::Code;
use crate::mesh::hop::Vouch;
use crate::names::AppId;
use crate::ratls::{ChainError, Purpose, VerifiedPeer, still_valid, verify_chain};

/// Chains remembered by each worker; the same few come again and again.
const REMEMBERED: usize = 128;

/// Who is on the other side of one connection.
pub(in crate::mesh) struct Caller {
    /// Whose root the chain led to.
    door: Arc<Door>,
    standing: Result<Known, Stranger>,
}

/// Another app, which has proved to be it.
pub(in crate::mesh) struct Known {
    peer: VerifiedPeer,
    /// What backends are told about it.
    pub(super) vouch: Vouch,
}

impl Known {
    pub(super) fn app(&self) -> AppId {
        self.peer.app_id
    }
}

/// Why nobody can say who calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::mesh) enum Stranger {
    #[error("no client certificate; connect with the certificate that the guest agent issues to the app")]
    Unnamed,
    #[error("{0}")]
    Chain(#[from] ChainError),
    #[error("the client certificate expired while the connection was open; connect again with the new one")]
    Outlived,
    #[error("this machine has another KMS root since; connect again")]
    OtherRoot,
}

impl Stranger {
    /// The stable name in metrics.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Unnamed => Code::NoCertificate,
            Self::Chain(cause) => cause.code(),
            Self::Outlived => Code::Expired,
            Self::OtherRoot => Code::UntrustedChain,
        }
    }
}

impl Caller {
    /// The app that calls, as far as this moment's certificate of ours and this time go.
    pub(super) fn known(&self, now: &Arc<Door>, time: SystemTime) -> Result<&Known, Stranger> {
        let known = self.standing.as_ref().map_err(Clone::clone)?;
        if !Arc::ptr_eq(&self.door, now) && self.door.root() != now.root() {
            return Err(Stranger::OtherRoot);
        }
        if known.peer.not_after < time {
            return Err(Stranger::Outlived);
        }
        Ok(known)
    }
}

/// Chains that were verified.
#[derive(Default)]
pub(super) struct Callers {
    door: Option<Arc<Door>>,
    known: HashMap<Vec<CertificateDer<'static>>, VerifiedPeer>,
}

impl Callers {
    /// Whose connection was accepted. A resumed one brings its chain along, and is checked like any other.
    pub(super) fn caller(&mut self, door: Arc<Door>, accepted: &Accepted) -> Caller {
        let (socket, tls) = accepted.get_ref();
        let address = socket.0.peer_addr();
        let address = address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        // `::ffff:` is how IPv4 comes to an IPv6 socket.
        let client = address.to_canonical();
        let standing = match tls.peer_certificates() {
            None | Some([]) => Err(Stranger::Unnamed),
            Some(chain) => self.verify(&door, chain).map_err(Stranger::from),
        };
        let standing = standing.and_then(|peer| {
            let vouch = Vouch::new(&peer.app_id, client).ok_or(Stranger::Unnamed)?;
            Ok(Known { peer, vouch })
        });
        if let Err(stranger) = &standing {
            tracing::debug!(code = stranger.code().name(), %address, "{stranger}");
        }
        Caller { door, standing }
    }

    fn verify(
        &mut self,
        door: &Arc<Door>,
        chain: &[CertificateDer<'static>],
    ) -> Result<VerifiedPeer, ChainError> {
        let same = self
            .door
            .as_ref()
            .is_some_and(|before| before.root() == door.root());
        if !same {
            self.known.clear();
            self.door = Some(Arc::clone(door));
        }
        let now = UnixTime::now();
        if let Some(peer) = self.known.get(chain) {
            still_valid(chain, now)?;
            return Ok(*peer);
        }
        let peer = verify_chain(chain, door.root(), now, Purpose::Client)?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(chain.to_vec(), peer);
        Ok(peer)
    }
}
