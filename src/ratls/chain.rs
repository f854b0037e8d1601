//! Verifies a presented chain up to the KMS root and tells whose it is.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::extensions::{ExtensionError, USAGE_APP, USAGE_APP_CA, app_id_of, parse, usage_of};
use super::verifier::provider;
use crate::codes::Code;
use crate::names::AppId;

/// Leaf, App CA, root, and one to spare: a KMS makes no longer chain.
const MAX_PRESENTED: usize = 4;

/// What the certificate is used for; it is checked when the leaf restricts its use (EKU).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It answers calls.
    Server,
    /// It calls.
    Client,
}

/// Who stands behind a chain that passed every check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// The same on the leaf and on its App CA.
    pub app_id: AppId,
    /// When the first of the two expires.
    pub not_after: SystemTime,
}

/// Why a chain does not establish an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("no certificate was presented; the peer must use the certificate that its guest agent issues")]
    NoCertificate,
    #[error(
        "{0} certificates were presented, more than the {MAX_PRESENTED} a dstack chain can have; present the leaf and its App CA"
    )]
    TooManyCertificates(usize),
    #[error("a certificate cannot be read: {0}")]
    Malformed(#[from] ExtensionError),
    #[error(
        "the chain does not lead to our KMS root: seen {seen}; expected the root {expected} ({reason}). Both apps must be deployed \
         with the same KMS; if they are, check that the peer presents its App CA and that its platform image issues proper chains"
    )]
    Untrusted {
        seen: String,
        expected: String,
        reason: String,
    },
    #[error("the certificate expired {ago} s ago; its owner must renew it, or a clock is wrong")]
    Expired { ago: u64 },
    #[error("the certificate is valid only in {within} s; one of the two clocks is wrong")]
    NotYetValid { within: u64 },
    #[error("the certificate may not be used for {}", match .0 { Purpose::Server => "answering calls", Purpose::Client => "calling" })]
    WrongPurpose(Purpose),
    #[error("the certificate carries no app id; it was made without a KMS, so nobody can tell whose it is")]
    NoAppId,
    #[error(
        "the certificate names the app {leaf} but its App CA belongs to {ca}; this is not what a KMS issues"
    )]
    AppIdsDiffer { leaf: AppId, ca: String },
    #[error(
        "the certificate is for the usage {found:?} where {expected:?} is needed; it does not belong to an app"
    )]
    WrongUsage { found: String, expected: &'static str },
    #[error("the peer is the app {found}, not the app {expected} that was asked for; nothing was sent to it")]
    WrongApp { expected: AppId, found: AppId },
}

impl ChainError {
    /// The stable name of this failure in error replies and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::NoCertificate | Self::TooManyCertificates(_) | Self::Untrusted { .. } => {
                Code::UntrustedChain
            }
            Self::Malformed(_) => Code::BadCertificate,
            Self::Expired { .. } => Code::Expired,
            Self::NotYetValid { .. } => Code::NotYetValid,
            Self::WrongPurpose(_) | Self::WrongUsage { .. } => Code::WrongUsage,
            Self::NoAppId => Code::NoAppId,
            Self::AppIdsDiffer { .. } | Self::WrongApp { .. } => Code::IdentityMismatch,
        }
    }
}

/// Verifies `presented` (leaf first, the root may be there or not) against the one `root` and reads the app id.
///
/// The path is built from the presented certificates alone: App CAs share their name, so one that is remembered
/// or looked up by subject could be another app's.
///
/// # Errors
/// The first check that failed; see [`ChainError::code`].
pub fn verify_chain(
    presented: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: UnixTime,
    purpose: Purpose,
) -> Result<VerifiedPeer, ChainError> {
    let (leaf, others) = presented.split_first().ok_or(ChainError::NoCertificate)?;
    verify(leaf, others, root, now, purpose)
}

/// [`verify_chain`] in the shape that rustls hands a chain over.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: UnixTime,
    purpose: Purpose,
) -> Result<VerifiedPeer, ChainError> {
    if others.len() >= MAX_PRESENTED {
        return Err(ChainError::TooManyCertificates(others.len() + 1));
    }
    let untrusted = |reason: String| ChainError::Untrusted {
        seen: describe(others.last().unwrap_or(leaf)),
        expected: describe(root),
        reason,
    };

    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| match error {
        webpki::Error::UnsupportedCriticalExtension => untrusted(format!("{error:?}")),
        _ => ExtensionError::NotACertificate.into(),
    })?;
    let anchors =
        [anchor_from_trusted_cert(root).map_err(|e| untrusted(format!("our root is unusable: {e:?}")))?];
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::client_auth(),
    };
    let path = end_entity
        .verify_for_usage(
            provider().signature_verification_algorithms.all,
            &anchors,
            others,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::CertExpired { time, not_after } => ChainError::Expired {
                ago: time.as_secs().saturating_sub(not_after.as_secs()),
            },
            webpki::Error::CertNotValidYet { time, not_before } => ChainError::NotYetValid {
                within: not_before.as_secs().saturating_sub(time.as_secs()),
            },
            webpki::Error::RequiredEkuNotFoundContext(_) => ChainError::WrongPurpose(purpose),
            webpki::Error::BadDer | webpki::Error::TrailingData(_) => ExtensionError::NotACertificate.into(),
            webpki::Error::UnknownIssuer => untrusted("no presented certificate was signed by it".into()),
            other => untrusted(format!("{other:?}")),
        })?;

    let mut intermediates = path.intermediate_certificates();
    let (Some(app_ca), None) = (intermediates.next(), intermediates.next()) else {
        return Err(untrusted(
            "exactly one App CA must stand between leaf and root".into(),
        ));
    };
    let app_ca = app_ca.der();
    let (leaf, app_ca, root) = (parse(leaf)?, parse(&app_ca)?, parse(root)?);
    // Two things that webpki leaves out: to it an anchor is always valid, and every CA may sign.
    check_time(&root, now)?;
    if let Ok(Some(usage)) = app_ca.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(untrusted("the App CA's key may not sign certificates".into()));
    }
    let app_id = app_id_of(&leaf)?.ok_or(ChainError::NoAppId)?;
    let ca_id = app_id_of(&app_ca)?;
    if ca_id != Some(app_id) {
        return Err(ChainError::AppIdsDiffer {
            leaf: app_id,
            ca: ca_id.map_or("no app".into(), |id| id.to_string()),
        });
    }
    check_usage(&leaf, USAGE_APP)?;
    check_usage(&app_ca, USAGE_APP_CA)?;
    Ok(VerifiedPeer {
        app_id,
        not_after: not_after(&leaf).min(not_after(&app_ca)),
    })
}

/// Whether a server's certificate leads to `root`, whoever's it is.
pub(crate) fn leads_to(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: UnixTime,
) -> bool {
    let (Ok(leaf), Ok(anchor)) = (EndEntityCert::try_from(leaf), anchor_from_trusted_cert(root)) else {
        return false;
    };
    let algorithms = provider().signature_verification_algorithms.all;
    leaf.verify_for_usage(
        algorithms,
        &[anchor],
        others,
        now,
        KeyUsage::server_auth(),
        None,
        None,
    )
    .is_ok()
}

/// Reads a leaf whose chain somebody else verified (nginx hands over no more than the leaf): whose it is, and when it is valid.
///
/// # Errors
/// [`ChainError::Malformed`], [`ChainError::NoAppId`] or [`ChainError::WrongUsage`].
pub fn leaf(certificate: &CertificateDer<'_>) -> Result<(AppId, RangeInclusive<SystemTime>), ChainError> {
    let leaf = parse(certificate)?;
    let app_id = app_id_of(&leaf)?.ok_or(ChainError::NoAppId)?;
    check_usage(&leaf, USAGE_APP)?;
    if leaf.is_ca() {
        return Err(ChainError::WrongUsage {
            found: "certificate authority".into(),
            expected: USAGE_APP,
        });
    }
    Ok((app_id, not_before(&leaf)..=not_after(&leaf)))
}

/// Whether certificates that were verified once are still valid: a resumed session brings them back without asking again.
///
/// # Errors
/// [`ChainError::Expired`] or [`ChainError::NotYetValid`] for the first that is not.
pub(crate) fn still_valid(presented: &[CertificateDer<'_>], now: UnixTime) -> Result<(), ChainError> {
    presented.iter().try_for_each(|certificate| {
        let certificate = parse(certificate)?;
        match app_id_of(&certificate)? {
            Some(_) => check_time(&certificate, now),
            // Nothing was built on it.
            None => Ok(()),
        }
    })
}

fn check_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), ChainError> {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let (begin, end, now) = (
        seconds(not_before(certificate)),
        seconds(not_after(certificate)),
        now.as_secs(),
    );
    if end < now {
        return Err(ChainError::Expired { ago: now - end });
    }
    if now < begin {
        return Err(ChainError::NotYetValid { within: begin - now });
    }
    Ok(())
}

/// Older KMS versions write no usage; one that says something else is a certificate of another kind.
fn check_usage(certificate: &X509Certificate<'_>, expected: &'static str) -> Result<(), ChainError> {
    match usage_of(certificate)? {
        Some(found) if found != expected => Err(ChainError::WrongUsage { found, expected }),
        _ => Ok(()),
    }
}

fn not_before(certificate: &X509Certificate<'_>) -> SystemTime {
    system_time(certificate.validity().not_before.timestamp())
}

fn not_after(certificate: &X509Certificate<'_>) -> SystemTime {
    system_time(certificate.validity().not_after.timestamp())
}

/// `seconds` since 1970, or 1970 for what is earlier: a certificate's years end at 9999, so this cannot overflow.
fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// Names a certificate for a person. The name is the peer's own text: shortened, and no control characters.
fn describe(certificate: &CertificateDer<'_>) -> String {
    let hash = hex::encode(&Sha256::digest(certificate)[..8]);
    let name = X509Certificate::from_der(certificate)
        .map_or_else(|_| "unreadable".into(), |(_, c)| c.subject().to_string());
    let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    format!("\"{name}\" (sha256 {hash}…)")
}
