//! Is this key and chain an identity? Every check before anything is stored or served.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::names::AppId;
use crate::ratls::{self, ChainError, Purpose};

/// Leaf, App CA, root, and one to spare.
const MAX_CERTIFICATES: usize = 4;

/// A key and a chain that passed every check.
///
/// It has no `Debug`: the key stays out of logs.
pub struct Checked {
    pub key: PrivateKeyDer<'static>,
    /// Leaf first, then the App CA; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub root: CertificateDer<'static>,
    /// `None`: made without a KMS.
    pub app_id: Option<AppId>,
    pub not_after: SystemTime,
}

/// Why a key and chain are not an identity.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("the {what} is not PEM: {why}")]
    NotPem { what: &'static str, why: String },
    #[error(
        "a chain of {0} certificates is not one that a guest agent makes (two without a KMS, three with one)"
    )]
    Length(usize),
    #[error("the key is not one that TLS can use: {0}")]
    Key(String),
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    #[error("the certificate is for the app {certificate}, and this is the app {expected}")]
    OtherApp { certificate: AppId, expected: AppId },
    /// The chain holds together badly: the whole of it is told.
    #[error("the chain does not lead to its root \"{root}\" ({reason}). Seen: {seen}. {ADVICE}")]
    Untrusted {
        root: String,
        reason: String,
        seen: String,
    },
    #[error(transparent)]
    Chain(ChainError),
    #[error("the certificate made without a KMS is not valid now: {0}")]
    SelfSignedTime(String),
}

/// The agent made this chain, so nothing in this machine's configuration can mend it.
const ADVICE: &str = "Some platform images make such chains (the 0.5.4 release image does, its dev image does not): deploy \
                      the app with another image version";

/// Checks a key and chain as `GetTlsKey` answers them (PEM, leaf first, root last) at the time `now`.
///
/// `expected` is the app id that the agent's `Info` tells; `None` when it is not known.
///
/// # Errors
/// The first check that failed.
pub fn check(
    key_pem: &str,
    chain_pem: &str,
    expected: Option<AppId>,
    now: SystemTime,
) -> Result<Checked, CheckError> {
    let not_pem = |what| {
        move |e: rustls_pki_types::pem::Error| CheckError::NotPem {
            what,
            why: e.to_string(),
        }
    };
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(not_pem("key"))?;
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(chain_pem.as_bytes()) {
        chain.push(certificate.map_err(not_pem("chain"))?);
        if chain.len() > MAX_CERTIFICATES {
            return Err(CheckError::Length(chain.len()));
        }
    }
    if chain.len() < 2 {
        return Err(CheckError::Length(chain.len()));
    }
    let root = chain.remove(chain.len() - 1);
    check_key(&key, &chain)?;

    let untrusted = |reason| CheckError::Untrusted {
        root: subject(&root),
        reason,
        seen: chain
            .iter()
            .chain([&root])
            .enumerate()
            .map(describe)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let chain_error = |source| match source {
        ChainError::Untrusted { reason, .. } => untrusted(reason),
        source => CheckError::Chain(source),
    };
    if !is_self_issued(&root) {
        return Err(untrusted("the last certificate is no root".to_owned()));
    }
    let leaf_app = ratls::app_id(&chain[0]).map_err(|e| chain_error(e.into()))?;
    let (app_id, not_after) = match leaf_app {
        // Leaf and self-signed CA: nothing that could be verified says whose this is.
        None if chain.len() == 1 => (None, check_time(&chain[0], now)?),
        _ => {
            let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
            let peer = ratls::verify_chain(&chain, &root, time, Purpose::Server).map_err(chain_error)?;
            ratls::verify_chain(&chain, &root, time, Purpose::Client).map_err(chain_error)?;
            (Some(peer.app_id), peer.not_after)
        }
    };
    match (app_id, expected) {
        (Some(certificate), Some(expected)) if certificate != expected => Err(CheckError::OtherApp {
            certificate,
            expected,
        }),
        _ => Ok(Checked {
            key,
            chain,
            root,
            app_id,
            not_after,
        }),
    }
}

fn check_key(key: &PrivateKeyDer<'static>, chain: &[CertificateDer<'static>]) -> Result<(), CheckError> {
    let key = ratls::provider()
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|e| CheckError::Key(e.to_string()))?;
    match CertifiedKey::new(chain.to_vec(), key).keys_match() {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CheckError::KeyMismatch),
        Err(_) => Err(CheckError::Chain(ratls::ExtensionError::NotACertificate.into())),
    }
}

fn is_self_issued(root: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(root).is_ok_and(|(_, root)| root.subject().as_raw() == root.issuer().as_raw())
}

/// The end of the validity, when `now` lies in it.
fn check_time(leaf: &CertificateDer<'_>, now: SystemTime) -> Result<SystemTime, CheckError> {
    let wrong = |why: &str| CheckError::SelfSignedTime(why.to_owned());
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| wrong("it cannot be read"))?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    let not_after = time(leaf.validity().not_after.timestamp());
    if now >= not_after {
        return Err(wrong("it expired"));
    }
    if now < time(leaf.validity().not_before.timestamp()) {
        return Err(wrong("it is not valid yet; the clock may be wrong"));
    }
    Ok(not_after)
}

/// A certificate of a chain as a person reads it.
fn describe((place, der): (usize, &CertificateDer<'_>)) -> String {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => format!(
            "{}. \"{}\" issued by \"{}\"",
            place + 1,
            printable(certificate.subject()),
            printable(certificate.issuer())
        ),
        Err(_) => format!("{}. unreadable", place + 1),
    }
}

fn subject(der: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(der).map_or_else(|_| "unreadable".to_owned(), |(_, c)| printable(c.subject()))
}

/// Names in certificates are somebody else's text.
fn printable(name: &X509Name<'_>) -> String {
    name.to_string()
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect()
}
