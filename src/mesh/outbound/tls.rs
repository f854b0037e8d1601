//! How we show ourselves, and whom we accept.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error};
use rustls_pki_types::CertificateDer;

use crate::identity::Identity;
use crate::names::AppId;
use crate::ratls::{AnyServer, PeerVerifier, client, provider};

/// Sessions remembered for each target; rustls reserves room for them at once.
const SESSIONS: usize = 8;

/// An [`Identity`] ready to be used in handshakes.
pub(super) struct Credentials {
    certificate: Arc<dyn ResolvesClientCert>,
    root: CertificateDer<'static>,
}

impl Credentials {
    /// # Errors
    /// The key cannot be used, or is not the certificate's.
    pub(super) fn new(identity: &Identity) -> Result<Self, Error> {
        let key = CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), provider())?;
        Ok(Self {
            certificate: Arc::new(SingleCertAndKey::from(key)),
            root: identity.root.clone(),
        })
    }

    /// For calls to `app` alone, with its own session cache: a session of one app must not be resumed with another.
    pub(super) fn config(&self, app: AppId, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        let verifier = Arc::new(PeerVerifier::new(app, self.root.clone()));
        let config = client(verifier)?.with_client_cert_resolver(Arc::clone(&self.certificate));
        Ok(finish(config, protocols))
    }
}

/// For calls whose TLS ends at the gateway (`x-dstack-target-use-tls: false`): encrypted on the way there, no identity
/// shown, none checked. The caller asked for exactly that.
pub(crate) fn without_identity(protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let config = client(Arc::new(AnyServer))?.with_no_client_auth();
    Ok(finish(config, protocols))
}

fn finish(mut config: ClientConfig, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}
