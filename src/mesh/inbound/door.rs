//! How TLS connections of peers begin.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DistinguishedName, Error, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::anchor_from_trusted_cert;

use crate::identity::Identity;
use crate::mesh::Role;
use crate::mesh::socket::Socket;
use crate::ratls::{handshake_signatures, provider};

const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A peer's connection after its handshake. In a box, because it is handed on from future to future, and each keeps room
/// for what it was handed.
pub(in crate::mesh) type Accepted = Box<TlsStream<Socket>>;

/// What connections begin with, for as long as our certificate stays the same. With a new one no session of before can
/// be resumed.
pub(in crate::mesh) struct Door {
    identity: Arc<Identity>,
    http: Arc<ServerConfig>,
    /// Without names of protocols: whatever a client offers, what it speaks is between it and the backend.
    tcp: Arc<ServerConfig>,
}

impl Door {
    fn new(identity: Arc<Identity>) -> Result<Self, Error> {
        let key = CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), provider())?;
        let hint = anchor_from_trusted_cert(&identity.root)
            .map(|anchor| DistinguishedName::in_sequence(anchor.subject.as_ref()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(Anybody(hint.into_iter().collect())))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
        // Sealed tickets, so that no memory is kept for those who may come back.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        // Each holds the caller's whole chain, and with a quote in it two are more than a client's buffer takes.
        config.send_tls13_tickets = 1;
        let mut tcp = config.clone();
        tcp.alpn_protocols.clear();
        Ok(Self {
            identity,
            http: Arc::new(config),
            tcp: Arc::new(tcp),
        })
    }

    /// The one root that callers' chains lead to.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.identity.root
    }

    /// The handshake.
    pub(in crate::mesh) async fn accept(&self, stream: TcpStream, role: &Role) -> io::Result<Accepted> {
        let config = if role.is_stream() { &self.tcp } else { &self.http };
        let accepted = TlsAcceptor::from(Arc::clone(config)).accept(Socket(stream)).await;
        accepted.map(Box::new)
    }
}

/// The current door, the same for all workers: a peer that resumes may come to any of them.
#[derive(Default)]
pub(in crate::mesh) struct Doors(Mutex<Option<Arc<Door>>>);

impl Doors {
    pub(super) fn current(&self, identity: &watch::Receiver<Option<Arc<Identity>>>) -> Option<Arc<Door>> {
        let identity = identity.borrow().clone()?;
        let mut door = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*door {
            Some(door) if Arc::ptr_eq(&door.identity, &identity) => return Some(Arc::clone(door)),
            _ => {}
        }
        let dir = identity.dir.clone();
        *door = Door::new(identity)
            .inspect_err(
                |error| tracing::error!(dir = %dir.display(), %error, "the certificate cannot be used"),
            )
            .ok()
            .map(Arc::new);
        door.clone()
    }
}

/// Lets every client through the handshake that holds the key of the certificate it showed, or showed none: who it is, is
/// asked afterwards, so that it can be told in HTTP what is wrong.
#[derive(Debug)]
struct Anybody(Vec<DistinguishedName>);

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}
