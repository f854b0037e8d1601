//! The checks of [`super::verify_chain`] inside the TLS handshake.

use std::sync::{Arc, LazyLock};

use rustls::client::WantsClientCert;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, ClientConfig, ConfigBuilder, DistinguishedName, Error, OtherError};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::chain::{ChainError, Purpose, VerifiedPeer, verify};
use crate::names::AppId;

/// The one cryptography provider of this program.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    &PROVIDER
}

/// The beginning of a client that believes whom `verifier` believes.
pub(crate) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()));
    let builder = builder.with_safe_default_protocol_versions()?.dangerous();
    Ok(builder.with_custom_certificate_verifier(verifier))
}

/// The part that is the same in every verifier of rustls: that the peer holds the key of the certificate it showed.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::ratls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, leaf, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::ratls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let algorithms = &$crate::ratls::provider().signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
}
pub(crate) use handshake_signatures;

/// Accepts a server that is the expected app, whatever name it was reached by.
///
/// The handshake fails for any other, so that not one byte of a request leaves. The [`ChainError`] travels in
/// the TLS error, see [`PeerVerifier::cause`].
#[derive(Debug)]
pub struct PeerVerifier {
    expected: AppId,
    root: CertificateDer<'static>,
}

impl PeerVerifier {
    /// `root` is the KMS root that came with our own certificate.
    pub fn new(expected: AppId, root: CertificateDer<'static>) -> Self {
        Self { expected, root }
    }

    /// The [`ChainError`] behind a failed handshake, if that is why it failed.
    pub fn cause(error: &Error) -> Option<&ChainError> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
            _ => None,
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = verify(leaf, others, &self.root, now, Purpose::Server).map_err(tls_error)?;
        if peer.app_id != self.expected {
            return Err(tls_error(ChainError::WrongApp {
                expected: self.expected,
                found: peer.app_id,
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

/// Accepts any server that has the key of the certificate it showed. Whose that is, the connection can be asked.
#[derive(Debug)]
pub(crate) struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

/// Accepts a client that is any app of our KMS; a client without a certificate gets through the handshake unnamed.
///
/// A resumed session skips this check: ask [`ClientVerifier::peer`] once for each connection.
#[derive(Debug)]
pub struct ClientVerifier {
    root: CertificateDer<'static>,
}

impl ClientVerifier {
    /// `root` is the KMS root that came with our own certificate.
    pub fn new(root: CertificateDer<'static>) -> Self {
        Self { root }
    }

    /// Whose connection this is, from the chain the connection remembers.
    ///
    /// # Errors
    /// As [`super::verify_chain`].
    pub fn peer(&self, presented: &[CertificateDer<'_>]) -> Result<VerifiedPeer, ChainError> {
        super::verify_chain(presented, &self.root, UnixTime::now(), Purpose::Client)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(leaf, others, &self.root, now, Purpose::Client).map_err(tls_error)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

fn tls_error(cause: ChainError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(cause))))
}
