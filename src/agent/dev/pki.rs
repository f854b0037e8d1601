//! Certificates shaped exactly as a dstack KMS makes them: root → App CA → leaf.
//!
//! The App CA has the same name for every app, a key that depends only on the root and the app id, and a
//! certificate that is signed anew at each call. That is what makes caching an intermediate by its subject
//! wrong, so tests must see it here too. Leaves carry no key identifiers and no SAN unless asked.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer};
use sha2::{Digest, Sha256};

use super::extensions::app_info_extension;
pub use super::extensions::{OID_APP_ID, OID_APP_INFO, OID_USAGE, app_id_extension, usage_extension};
use crate::names::{AppId, InstanceId};

/// Where `Pki::load_or_create` keeps key and certificate: one file, so that they cannot disagree.
const ROOT_FILE: &str = "dev-root.pem";

/// Why a development certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot keep the development root in {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is not a development root ({why}); delete it and a new one is made", path.display())]
    NotARoot { path: PathBuf, why: String },
}

/// A development KMS: one root for any number of apps.
pub struct Pki {
    key: KeyPair,
    root: CertificateDer<'static>,
    root_pem: String,
}

/// What `GetTlsKey` is asked for, and what a test may bend.
#[derive(Debug, Clone, Default)]
pub struct LeafRequest {
    /// The leaf's CN; `localhost` when empty.
    pub subject: String,
    pub alt_names: Vec<String>,
    pub server_auth: bool,
    pub client_auth: bool,
    /// Default: 1975-01-01, as the KMS has it.
    pub not_before: Option<SystemTime>,
    /// Default: ten years from now.
    pub not_after: Option<SystemTime>,
    /// Adds the AppInfo extension, naming this instance.
    pub app_info: Option<InstanceId>,
    pub forgery: Forgery,
}

impl LeafRequest {
    /// Server and client authentication, everything else by default.
    pub fn both() -> Self {
        Self {
            server_auth: true,
            client_auth: true,
            ..Self::default()
        }
    }
}

/// Departures from what a KMS does, for tests of those who verify.
#[derive(Debug, Clone, Default)]
pub struct Forgery {
    /// Instead of the leaf's own `.3` and `.4`; see [`app_id_extension`] and [`usage_extension`].
    pub leaf_extensions: Option<Vec<CustomExtension>>,
    /// Instead of the App CA's own `.3` and `.4`.
    pub ca_extensions: Option<Vec<CustomExtension>>,
}

/// A key and its chain in PEM, as `GetTlsKey` answers.
#[derive(Clone)]
pub struct Issued {
    /// PKCS#8.
    pub key_pem: String,
    /// From a KMS leaf, App CA, root; without one leaf, self-signed CA.
    pub chain_pems: Vec<String>,
}

impl Issued {
    /// The leaf in DER.
    pub fn leaf(&self) -> CertificateDer<'static> {
        self.chain().swap_remove(0)
    }

    /// The whole chain in DER, the root last.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain_pems
            .iter()
            .filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok())
            .collect()
    }

    /// The key in DER.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, rustls_pki_types::pem::Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
    }
}

impl Pki {
    /// A fresh root that nothing else knows.
    pub fn new() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = root_params().self_signed(&key)?;
        Ok(Self {
            key,
            root: root.der().clone(),
            root_pem: root.pem(),
        })
    }

    /// The root kept in `dir`, so that several agents share it; made there when there is none. Safe against
    /// another process doing the same: whoever comes second takes the first one's.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(ROOT_FILE);
        let io = |source| PkiError::Io {
            path: path.clone(),
            source,
        };
        if !path.exists() {
            let new = Self::new()?;
            std::fs::create_dir_all(dir).map_err(io)?;
            // 0600 from its creation, and complete before it has its name.
            let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
            write!(file, "{}{}", new.key.serialize_pem(), new.root_pem).map_err(io)?;
            match file.persist_noclobber(&path) {
                Ok(_) => return Ok(new),
                Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io(e.error)),
            }
        }
        let pem = std::fs::read_to_string(&path).map_err(io)?;
        let not_a_root = |why: String| PkiError::NotARoot {
            path: path.clone(),
            why,
        };
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| not_a_root(e.to_string()))?;
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| not_a_root(e.to_string()))?;
        let root_pem = pem
            .find("-----BEGIN CERTIFICATE")
            .map(|at| pem[at..].to_owned())
            .unwrap_or_default();
        let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|e| not_a_root(e.to_string()))?;
        Ok(Self { key, root, root_pem })
    }

    /// The root in DER: what peers must chain to.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// The root in PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// What a KMS answers for `app`: leaf, App CA, root, with a fresh leaf key.
    pub fn issue(&self, app: &AppId, request: &LeafRequest) -> Result<Issued, PkiError> {
        let root = Issuer::new(root_params(), &self.key);
        let ca_key = self.app_key(app)?;
        let mut ca = ca_params("Dstack App CA", 0);
        ca.custom_extensions = request
            .forgery
            .ca_extensions
            .clone()
            .unwrap_or_else(|| vec![app_id_extension(app), usage_extension("app:ca")]);
        let ca_cert = ca.signed_by(&ca_key, &root)?;

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut leaf = leaf_params(request)?;
        leaf.custom_extensions = request
            .forgery
            .leaf_extensions
            .clone()
            .unwrap_or_else(|| vec![app_id_extension(app), usage_extension("app:custom")]);
        if let Some(instance) = &request.app_info {
            leaf.custom_extensions.push(app_info_extension(app, instance));
        }
        let leaf_cert = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok(Issued {
            key_pem: key.serialize_pem(),
            chain_pems: vec![leaf_cert.pem(), ca_cert.pem(), self.root_pem.clone()],
        })
    }

    /// What an agent without a KMS answers: a leaf without an app id under a CA of its own.
    pub fn issue_without_kms(request: &LeafRequest) -> Result<Issued, PkiError> {
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let ca = ca_params("Dstack App CA", 0);
        let ca_cert: Certificate = ca.self_signed(&ca_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut leaf = leaf_params(request)?;
        leaf.custom_extensions = request
            .forgery
            .leaf_extensions
            .clone()
            .unwrap_or_else(|| vec![usage_extension("app:custom")]);
        let leaf_cert = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok(Issued {
            key_pem: key.serialize_pem(),
            chain_pems: vec![leaf_cert.pem(), ca_cert.pem()],
        })
    }

    /// The App CA's key: the same whenever the root and the app are.
    fn app_key(&self, app: &AppId) -> Result<KeyPair, PkiError> {
        // A hash is a P-256 scalar except with a probability of 2^-32; then the next counter is.
        let mut result = Err(rcgen::Error::CouldNotParseKeyPair);
        for counter in 0..4u8 {
            let scalar = Sha256::new()
                .chain_update(b"dstack-vpc development app key")
                .chain_update([counter])
                .chain_update(self.key.serialized_der())
                .chain_update(app.as_bytes())
                .finalize();
            // ECPrivateKey of RFC 5915 without the public key, which follows from the scalar.
            let mut sec1 = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
            sec1.extend_from_slice(&scalar);
            sec1.extend_from_slice(&[
                0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
            ]);
            let key = PrivateKeyDer::from(PrivateSec1KeyDer::from(sec1));
            result = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
            if result.is_ok() {
                break;
            }
        }
        Ok(result?)
    }
}

fn root_params() -> CertificateParams {
    ca_params("Dstack KMS CA", 1)
}

fn ca_params(common_name: &str, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Dstack");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = ten_years_from_now().into();
    params
}

fn leaf_params(request: &LeafRequest) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(request.alt_names.clone())?;
    let subject = match request.subject.as_str() {
        "" => "localhost",
        subject => subject,
    };
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if request.server_auth {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if request.client_auth {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.not_before = match request.not_before {
        Some(time) => time.into(),
        None => date_time_ymd(1975, 1, 1),
    };
    params.not_after = request.not_after.unwrap_or_else(ten_years_from_now).into();
    Ok(params)
}

fn ten_years_from_now() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10 * 365 * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn app() -> AppId {
        AppId::from_bytes([0xab; 20])
    }

    fn extension<'a>(cert: &'a X509Certificate<'_>, oid: &[u64]) -> Option<&'a [u8]> {
        let oid = x509_parser::der_parser::oid::Oid::from(oid).unwrap();
        let found = cert.get_extension_unique(&oid).unwrap()?;
        assert!(!found.critical);
        Some(found.value)
    }

    #[test]
    fn a_chain_has_the_shape_of_a_kms() {
        let pki = Pki::new().unwrap();
        let issued = pki.issue(&app(), &LeafRequest::both()).unwrap();
        let chain = issued.chain();
        let [leaf, ca, root] = &chain[..] else {
            panic!("three certificates")
        };
        let parse = |der: &CertificateDer<'_>| {
            X509Certificate::from_der(der.as_ref()).map(|(_, c)| c.subject().to_string())
        };
        assert_eq!(parse(root).unwrap(), "O=Dstack, CN=Dstack KMS CA");
        assert_eq!(parse(ca).unwrap(), "O=Dstack, CN=Dstack App CA");
        assert_eq!(parse(leaf).unwrap(), "CN=localhost");

        let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
        let (_, ca) = X509Certificate::from_der(ca).unwrap();
        let (_, root) = X509Certificate::from_der(root).unwrap();
        let mut id = vec![0x04, 0x14];
        id.extend([0xab; 20]);
        assert_eq!(extension(&leaf, &OID_APP_ID), Some(&id[..]));
        assert_eq!(extension(&ca, &OID_APP_ID), Some(&id[..]));
        assert_eq!(extension(&root, &OID_APP_ID), None);
        assert_eq!(extension(&leaf, &OID_USAGE), Some(&b"\x04\x0aapp:custom"[..]));
        assert_eq!(extension(&ca, &OID_USAGE), Some(&b"\x04\x06app:ca"[..]));
        assert_eq!(extension(&leaf, &OID_APP_INFO), None);
        let pathlen =
            |c: &X509Certificate<'_>| c.basic_constraints().unwrap().unwrap().value.path_len_constraint;
        assert_eq!((pathlen(&root), pathlen(&ca)), (Some(1), Some(0)));
        assert!(leaf.subject_alternative_name().unwrap().is_none());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
        let eku = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(eku.server_auth && eku.client_auth);
        assert_eq!(leaf.validity().not_before.to_datetime().year(), 1975);
        assert_eq!(
            leaf.extensions().len(),
            4,
            "no key identifiers: {:?}",
            leaf.extensions()
        );
        for (cert, issuer) in [(&leaf, &ca), (&ca, &root), (&root, &root)] {
            cert.verify_signature(Some(issuer.public_key())).unwrap();
        }
    }

    #[test]
    fn the_app_ca_key_is_the_apps_and_its_certificate_is_new_each_time() {
        let pki = Pki::new().unwrap();
        let ca = |app: &AppId| {
            pki.issue(app, &LeafRequest::both())
                .unwrap()
                .chain()
                .swap_remove(1)
        };
        let key = |der: &CertificateDer<'_>| {
            X509Certificate::from_der(der.as_ref())
                .unwrap()
                .1
                .public_key()
                .raw
                .to_vec()
        };
        let (one, two, other) = (ca(&app()), ca(&app()), ca(&AppId::from_bytes([1; 20])));
        assert_ne!(one, two);
        assert_eq!(key(&one), key(&two));
        assert_ne!(key(&one), key(&other));
    }

    #[test]
    fn a_kept_root_is_the_same_root() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path()).unwrap();
        let second = Pki::load_or_create(dir.path()).unwrap();
        assert_eq!(first.root(), second.root());
        assert_eq!(first.root_pem(), second.root_pem());
        assert_eq!(
            first.app_key(&app()).unwrap().public_key_raw(),
            second.app_key(&app()).unwrap().public_key_raw()
        );
        std::fs::write(dir.path().join(ROOT_FILE), "junk").unwrap();
        assert!(matches!(
            Pki::load_or_create(dir.path()),
            Err(PkiError::NotARoot { .. })
        ));
    }

    #[test]
    fn without_a_kms_there_is_no_app_id() {
        let issued = Pki::issue_without_kms(&LeafRequest::both()).unwrap();
        let chain = issued.chain();
        assert_eq!(chain.len(), 2);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(extension(&leaf, &OID_APP_ID), None);
    }
}
