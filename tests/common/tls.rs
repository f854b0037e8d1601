//! Both ends of TLS as tests need them: a client that takes any server certificate (it is to show what the
//! *server* lets in), and a server that shows any certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use dstack_vpc::agent::dev::Issued;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How to come to a TLS listener.
#[derive(Default)]
pub struct Caller {
    /// The client certificate, without one if `None`.
    pub identity: Option<Issued>,
    /// `h2` is offered when true, else nothing is.
    pub h2: bool,
    /// All that rustls knows when `None`.
    pub version: Option<&'static SupportedProtocolVersion>,
}

impl Caller {
    pub fn with(identity: Issued) -> Self {
        Self {
            identity: Some(identity),
            ..Self::default()
        }
    }

    /// Connects and shakes hands. With TLS 1.3 a refused certificate shows only at the first read.
    pub async fn connect(&self, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let config = self.config();
        let stream = TcpStream::connect(addr).await?;
        let name = ServerName::IpAddress(addr.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// What it connects with.
    pub fn config(&self) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions = match &self.version {
            Some(version) => vec![*version],
            None => rustls::ALL_VERSIONS.to_vec(),
        };
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .expect("protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(issued) => {
                let mut chain = issued.chain();
                // The root stays at home, as with the real callers.
                chain.truncate(2);
                let key = issued.key().expect("issued key");
                config
                    .with_client_auth_cert(chain, key)
                    .expect("client certificate")
            }
        };
        if self.h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        config
    }
}

/// The server side for a peer that shows `identity` and asks for no certificate.
pub fn acceptor(identity: &Issued) -> TlsAcceptor {
    let mut chain = identity.chain();
    chain.truncate(2);
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(chain, identity.key().expect("issued key"))
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// Verifies that the server holds its key, not whose key it is.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
