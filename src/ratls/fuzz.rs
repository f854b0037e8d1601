//! Certificates of strangers.

use std::sync::LazyLock;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    SigningKey, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::extensions::{USAGE_APP, USAGE_APP_CA};
use super::{ChainError, Purpose, app_id, leaf, usage, verify_chain};
use crate::names::AppId;

/// `data` is a certificate. An app id is read from exactly one extension, and only where another reader finds it.
pub(crate) fn certificate(data: &[u8]) {
    let id = app_id(data);
    let extensions = extensions(data);
    if let Ok(Some(id)) = &id {
        assert_eq!(only_app_id(data), Some(id.to_string()));
    }
    if let (Ok(None), Some(all)) = (&id, &extensions) {
        assert!(!all.iter().any(|(oid, _)| *oid == APP_ID));
    }
    if let (Ok(Some(usage)), Some(all)) = (usage(data), &extensions) {
        let value = [&[0x04, usage.len() as u8], usage.as_bytes()].concat();
        assert_eq!(the_only(all, USAGE), Some(&value[..]));
    }
    let der = CertificateDer::from(data);
    if let Ok((app, validity)) = leaf(&der) {
        assert_eq!(id, Ok(Some(app)));
        assert!(usage(data).unwrap().is_none_or(|usage| usage == USAGE_APP));
        let (rest, other) = X509Certificate::from_der(data).unwrap();
        assert!(rest.is_empty());
        let inside = other.validity().not_before.timestamp()..=other.validity().not_after.timestamp();
        let end = validity.end().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(inside.end().max(&0) == &(end.as_secs() as i64));
    }
    // What TLS takes for a certificate, and we do not, is refused; the other way round nobody would have verified it.
    if EndEntityCert::try_from(&der).is_ok() {
        assert!(extensions.is_some() || id.is_err() || id == Ok(None));
    }
    let root = &PKI.root;
    told(&verify_chain(&[der], root, NOW, Purpose::Client).unwrap_err());
}

/// `data` is what is signed of a leaf (TBSCertificate), and after it what is signed of its App CA, else that of a good
/// one. Both are signed here by the right keys, so that it is the content alone that decides.
pub fn certificate_chain(data: &[u8]) {
    let (tbs, rest) = tlv(data).map_or((data, &[][..]), |it| (it.whole, it.rest));
    let ca_tbs = tlv(rest).map_or(PKI.good_ca.as_slice(), |it| it.whole);
    let (leaf, ca) = (signed(tbs, &PKI.ca_key), signed(ca_tbs, &PKI.root_key));
    let root = &PKI.root;
    let verify = |chain: &[&CertificateDer<'_>], now, purpose| {
        let chain: Vec<_> = chain.iter().map(|it| (*it).clone()).collect();
        verify_chain(&chain, root, now, purpose)
    };
    let verdicts = [Purpose::Server, Purpose::Client].map(|purpose| verify(&[&leaf, &ca], NOW, purpose));
    for (verdict, purpose) in verdicts.iter().zip([Purpose::Server, Purpose::Client]) {
        let peer = match verdict {
            Ok(peer) => peer,
            Err(error) => {
                told(error);
                continue;
            }
        };
        for (der, usage) in [(&leaf, USAGE_APP), (&ca, USAGE_APP_CA)] {
            assert_eq!(only_app_id(der), Some(peer.app_id.to_string()));
            let value = [&[0x04, usage.len() as u8], usage.as_bytes()].concat();
            let all = extensions(der).unwrap();
            assert!(all.iter().all(|(oid, _)| *oid != USAGE) || the_only(&all, USAGE) == Some(&value));
            let (_, read) = X509Certificate::from_der(der).unwrap();
            let validity = read.validity();
            let now = NOW.as_secs() as i64;
            assert!(validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp());
            assert!(read.version().0 == 2 && read.is_ca() == (usage == USAGE_APP_CA));
        }
        let end = peer.not_after.duration_since(std::time::UNIX_EPOCH).unwrap();
        let later = UnixTime::since_unix_epoch(end + Duration::from_secs(1));
        assert!(verify(&[&leaf, &ca], later, purpose).is_err(), "expired");
        assert_eq!(verify(&[&leaf, &ca, root], NOW, purpose).as_ref(), Ok(peer));
        assert_eq!(verify(&[&leaf, root, &ca], NOW, purpose).as_ref(), Ok(peer));
        for (what, chain) in [
            ("no App CA", &[&leaf][..]),
            ("another root's", &[&leaf, &signed(ca_tbs, &PKI.other_key)]),
            ("signed by a leaf", &[&signed(tbs, &PKI.other_key), &leaf, &ca]),
            ("the App CA alone", &[&ca, root]),
        ] {
            assert!(verify(chain, NOW, purpose).is_err(), "{what}");
        }
    }
    if let [Ok(server), Ok(client)] = &verdicts {
        assert_eq!(server, client);
    }
}

/// The app id, when exactly one extension has one: read without a library, by nothing but tags and lengths.
pub(crate) fn only_app_id(certificate: &[u8]) -> Option<String> {
    let all = extensions(certificate)?;
    let id = the_only(&all, APP_ID)?.strip_prefix(&[0x04, 20])?;
    (id.len() == 20).then(|| hex::encode(id))
}

/// 1.3.6.1.4.1.62397.1.3
const APP_ID: &[u8] = b"\x2b\x06\x01\x04\x01\x83\xe7\x3d\x01\x03";
/// 1.3.6.1.4.1.62397.1.4
const USAGE: &[u8] = b"\x2b\x06\x01\x04\x01\x83\xe7\x3d\x01\x04";
/// 2030-01-01
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));

/// Object identifier and value of each extension.
fn extensions(certificate: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let tbs = tlv(tlv(certificate)?.content)?.content;
    let mut found = Vec::new();
    for field in tlvs(tbs).filter(|field| field.tag == 0xa3) {
        for extension in tlvs(tlv(field.content)?.content) {
            let mut parts = tlvs(extension.content);
            let oid = parts.next()?.content;
            found.push((oid, parts.last()?.content));
        }
    }
    Some(found)
}

fn the_only<'d>(extensions: &[(&[u8], &'d [u8])], wanted: &[u8]) -> Option<&'d [u8]> {
    let mut values = extensions
        .iter()
        .filter(|(oid, _)| *oid == wanted)
        .map(|(_, value)| *value);
    values.next().filter(|_| values.next().is_none())
}

struct Tlv<'d> {
    tag: u8,
    content: &'d [u8],
    whole: &'d [u8],
    rest: &'d [u8],
}

fn tlv(der: &[u8]) -> Option<Tlv<'_>> {
    let (tag, first) = (*der.first()?, usize::from(*der.get(1)?));
    let (start, length) = match first {
        ..=0x7f => (2, first),
        0x81..=0x84 => {
            let digits = der.get(2..2 + first - 0x80)?;
            let length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            (2 + digits.len(), length)
        }
        _ => return None,
    };
    Some(Tlv {
        tag,
        content: der.get(start..start + length)?,
        whole: &der[..start + length],
        rest: &der[start + length..],
    })
}

fn tlvs(mut der: &[u8]) -> impl Iterator<Item = Tlv<'_>> {
    std::iter::from_fn(move || {
        let next = tlv(der)?;
        der = next.rest;
        Some(next)
    })
}

/// A refusal goes into logs and error replies, and holds names that a stranger chose.
fn told(error: &ChainError) {
    let words = error.to_string();
    assert!(
        words.len() < 1200 && !words.contains(char::is_control),
        "{words:?}"
    );
}

struct TestPki {
    root_key: KeyPair,
    ca_key: KeyPair,
    other_key: KeyPair,
    root: CertificateDer<'static>,
    /// What is signed of the App CA of [`APP`].
    good_ca: Vec<u8>,
}

/// Its keys are always the same, so that a saved input means the same again.
static PKI: LazyLock<TestPki> = LazyLock::new(|| {
    let (root_key, ca_key) = (key(1), key(2));
    let root = authority("Dstack KMS CA", 1, Vec::new())
        .self_signed(&root_key)
        .unwrap();
    let ca = authority("Dstack App CA", 0, both_extensions(USAGE_APP_CA));
    let issuer = rcgen::Issuer::new(authority("Dstack KMS CA", 1, Vec::new()), &root_key);
    let ca = ca.signed_by(&ca_key, &issuer).unwrap();
    TestPki {
        good_ca: to_be_signed(ca.der()).to_vec(),
        root: root.der().clone(),
        root_key,
        ca_key,
        other_key: key(3),
    }
});

const APP: [u8; 20] = [0xaa; 20];

fn key(scalar: u8) -> KeyPair {
    // ECPrivateKey of RFC 5915 without the public key, which follows from the scalar.
    let mut sec1 = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    sec1.extend([scalar; 32]);
    sec1.extend(b"\xa0\x0a\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07");
    let key = PrivateKeyDer::from(PrivateSec1KeyDer::from(sec1));
    KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).unwrap()
}

fn authority(name: &str, path_length: u8, extensions: Vec<CustomExtension>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Dstack");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(2035, 1, 1);
    params.custom_extensions = extensions;
    params
}

fn both_extensions(usage: &str) -> Vec<CustomExtension> {
    use crate::agent::dev::pki::{app_id_extension, usage_extension};
    vec![app_id_extension(&AppId::from_bytes(APP)), usage_extension(usage)]
}

fn to_be_signed(certificate: &[u8]) -> &[u8] {
    tlv(certificate).and_then(|it| tlv(it.content)).unwrap().whole
}

/// The certificate with this content.
fn signed(tbs: &[u8], key: &KeyPair) -> CertificateDer<'static> {
    const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    let signature = [&[0][..], &key.sign(tbs).unwrap()].concat();
    wrapped(0x30, &[tbs, ECDSA_SHA256, &wrapped(0x03, &signature)].concat()).into()
}

/// DER takes the shortest form of a length only.
fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let digits = match length.iter().position(|digit| *digit != 0) {
        Some(first) => &length[first..],
        None => &[0][..],
    };
    let head = match digits {
        [only @ 0..0x80] => vec![tag, *only],
        digits => [&[tag, 0x80 | digits.len() as u8], digits].concat(),
    };
    [&head, content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use percent_encoding::percent_encode;
    use rcgen::ExtendedKeyUsagePurpose;

    /// The seeds are made with the keys of this file: good ones are let in, so what fuzzing makes of them is near to it.
    /// `UPDATE_GOLDEN=1` writes them anew.
    #[test]
    fn good_seeds_are_good() {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(1975, 1, 1);
        params.not_after = date_time_ymd(2035, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.custom_extensions = both_extensions(USAGE_APP);
        let issuer = rcgen::Issuer::new(authority("Dstack App CA", 0, Vec::new()), &PKI.ca_key);
        let good = params.signed_by(&key(4), &issuer).unwrap();
        params.custom_extensions.extend(both_extensions(USAGE_APP));
        let twice = params.signed_by(&key(4), &issuer).unwrap();
        params.custom_extensions.clear();
        let nobody = params.signed_by(&key(4), &issuer).unwrap();

        let both = [to_be_signed(good.der()), &PKI.good_ca].concat();
        let header = percent_encode(good.pem().as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string();
        let ca = signed(&PKI.good_ca, &PKI.root_key);
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let answer = serde_json::json!({
            "key": key(4).serialize_pem(),
            "certificate_chain": [good.pem(), pem(&ca), pem(&PKI.root)],
        });
        for (seed, bytes) in [
            ("certificate_chain/good", &both[..]),
            ("certificate_chain/good_leaf", to_be_signed(good.der())),
            ("certificate_chain/two_app_ids", to_be_signed(twice.der())),
            ("certificate_chain/no_app_id", to_be_signed(nobody.der())),
            ("auth_header/good", header.as_bytes()),
            ("auth_header/good_certificate", good.der()),
            ("auth_header/two_app_ids", twice.der()),
            (
                "auth_header/junk",
                b"-----BEGIN%20CERTIFICATE-----%0AMA==%0A-----END%20CERTIFICATE-----%0A",
            ),
            ("platform_answers/tls_key", answer.to_string().as_bytes()),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/seeds")
                .join(seed);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, bytes).unwrap();
            }
            assert!(path.exists(), "{seed}");
        }
        let read = |seed: &str| {
            fs::read(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("fuzz/seeds")
                    .join(seed),
            )
            .unwrap()
        };
        let both = read("certificate_chain/good");
        let (leaf, ca) = (tlv(&both).unwrap(), tlv(tlv(&both).unwrap().rest).unwrap());
        let chain = [signed(leaf.whole, &PKI.ca_key), signed(ca.whole, &PKI.root_key)];
        let peer = verify_chain(&chain, &PKI.root, NOW, Purpose::Server).unwrap();
        assert_eq!(peer.app_id, AppId::from_bytes(APP));
        let certificate = read("auth_header/good_certificate");
        assert_eq!(only_app_id(&certificate), Some(hex::encode(APP)));
        assert_eq!(only_app_id(&read("auth_header/two_app_ids")), None);
    }
}
