//! The dstack extensions of a certificate.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;

use crate::names::AppId;

/// `.3`, the app id: 20 bytes in a DER OCTET STRING. Source: dstack `ra-tls/src/oids.rs`.
const APP_ID: Oid<'static> = oid!(1.3.6.1.4.1.62397.1.3);
/// `.4`, the usage, e.g. `app:custom`: text in a DER OCTET STRING.
const USAGE: Oid<'static> = oid!(1.3.6.1.4.1.62397.1.4);

/// Usage of a certificate that an app made for itself.
pub(super) const USAGE_APP: &str = "app:custom";
/// Usage of an App CA.
pub(super) const USAGE_APP_CA: &str = "app:ca";

/// Why a dstack extension could not be read. Whatever made the certificate is not a dstack KMS, or is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    #[error("the certificate is not well-formed X.509")]
    NotACertificate,
    #[error("the certificate has the dstack extension {0} more than once")]
    Duplicate(&'static str),
    #[error("the app id extension is not a DER OCTET STRING of exactly 20 bytes")]
    AppIdEncoding,
    #[error("the usage extension is not text in a DER OCTET STRING")]
    UsageEncoding,
}

/// The app id in a certificate, `None` when it has none (a leaf made without a KMS, or the root).
///
/// This only reads; nothing is verified.
///
/// # Errors
/// Anything but one well-formed extension, see [`ExtensionError`].
pub fn app_id(certificate: &[u8]) -> Result<Option<AppId>, ExtensionError> {
    app_id_of(&parse(certificate)?)
}

/// The usage in a certificate, `None` when it has none. This only reads; nothing is verified.
///
/// # Errors
/// Anything but one well-formed extension, see [`ExtensionError`].
pub fn usage(certificate: &[u8]) -> Result<Option<String>, ExtensionError> {
    usage_of(&parse(certificate)?)
}

/// Read by two: x509-parser overlooks lengths of outer values that do not fit those of inner ones, so that it could find an
/// extension where others, such as the TLS library that verified the certificate, see something else.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ExtensionError> {
    match (
        X509Certificate::from_der(der),
        EndEntityCert::try_from(&CertificateDer::from(der)),
    ) {
        (Ok(([], certificate)), Ok(_)) => Ok(certificate),
        _ => Err(ExtensionError::NotACertificate),
    }
}

pub(super) fn app_id_of(certificate: &X509Certificate<'_>) -> Result<Option<AppId>, ExtensionError> {
    let Some(value) = unique(certificate, &APP_ID, "app id (.3)")? else {
        return Ok(None);
    };
    octet_string(value)
        .and_then(|bytes| bytes.try_into().ok())
        .map(|bytes| Some(AppId::from_bytes(bytes)))
        .ok_or(ExtensionError::AppIdEncoding)
}

pub(super) fn usage_of(certificate: &X509Certificate<'_>) -> Result<Option<String>, ExtensionError> {
    let Some(value) = unique(certificate, &USAGE, "usage (.4)")? else {
        return Ok(None);
    };
    octet_string(value)
        .and_then(|text| std::str::from_utf8(text).ok())
        .map(|text| Some(text.to_owned()))
        .ok_or(ExtensionError::UsageEncoding)
}

fn unique<'c>(
    certificate: &'c X509Certificate<'_>,
    oid: &Oid<'_>,
    name: &'static str,
) -> Result<Option<&'c [u8]>, ExtensionError> {
    certificate
        .get_extension_unique(oid)
        .map(|found| found.map(|extension| extension.value))
        .map_err(|_| ExtensionError::Duplicate(name))
}

/// The content of a DER OCTET STRING below 128 bytes that fills `der` exactly.
///
/// Both values are short, so only the one-byte length form is DER for them; anything else is refused,
/// which leaves no second way to write the same id.
fn octet_string(der: &[u8]) -> Option<&[u8]> {
    match der {
        [0x04, length, content @ ..] if *length < 0x80 && usize::from(*length) == content.len() => {
            Some(content)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_der_form_is_read() {
        let id = [7; 20];
        let der = |head: &[u8]| [head, &id[..]].concat();
        assert_eq!(octet_string(&der(&[0x04, 20])), Some(&id[..]));
        for (what, bad) in [
            ("long length form", der(&[0x04, 0x81, 20])),
            ("indefinite length", der(&[0x04, 0x80])),
            ("constructed", der(&[0x24, 20])),
            ("bit string", der(&[0x03, 20])),
            ("utf8 string", der(&[0x0c, 20])),
            ("too short", der(&[0x04, 21])),
            ("trailing bytes", der(&[0x04, 19])),
            ("raw bytes", id.to_vec()),
            ("nothing", vec![]),
        ] {
            assert_eq!(octet_string(&bad), None, "{what}");
        }
    }
}
