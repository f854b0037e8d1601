//! A PKI shaped like a KMS makes it, with a knob for everything an attacker could turn.

use std::sync::Arc;

use dstack_vpc::names::AppId;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

pub const APP_ID: &[u64] = &[1, 3, 6, 1, 4, 1, 62397, 1, 3];
pub const USAGE: &[u64] = &[1, 3, 6, 1, 4, 1, 62397, 1, 4];
const PADDING: &[u64] = &[1, 3, 6, 1, 4, 1, 62397, 1, 99];

/// What one certificate is to contain.
#[derive(Clone)]
pub struct Shape {
    pub name: &'static str,
    /// Raw values of `.3` extensions.
    pub app_ids: Vec<Vec<u8>>,
    /// Raw values of `.4` extensions.
    pub usages: Vec<Vec<u8>>,
    /// The extensions above are marked critical.
    pub critical: bool,
    pub ca: Option<u8>,
    /// Instead of what goes with `ca`.
    pub key_usages: Option<Vec<KeyUsagePurpose>>,
    pub eku: Vec<ExtendedKeyUsagePurpose>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub algorithm: &'static SignatureAlgorithm,
    /// A DNS name of its own.
    pub san: Option<&'static str>,
    /// The only names below this CA.
    pub permitted: Option<&'static str>,
    /// Subject key identifier, of a CA; then the authority's is written, too.
    pub key_id: Option<Vec<u8>>,
    /// Bytes in an extension that nobody knows.
    pub padding: usize,
}

pub fn octets(content: &[u8]) -> Vec<u8> {
    let mut der = vec![4, u8::try_from(content.len()).unwrap()];
    der.extend(content);
    der
}

pub fn id(n: u8) -> AppId {
    AppId::from_bytes([n; 20])
}

impl Shape {
    pub fn leaf(app: AppId) -> Self {
        Self {
            name: "localhost",
            app_ids: vec![octets(app.as_bytes())],
            usages: vec![octets(b"app:custom")],
            critical: false,
            ca: None,
            key_usages: None,
            eku: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            not_before: time::macros::datetime!(1975-01-01 0:00 UTC),
            not_after: OffsetDateTime::now_utc() + time::Duration::days(3650),
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
            san: None,
            permitted: None,
            key_id: None,
            padding: 0,
        }
    }

    pub fn app_ca(app: AppId) -> Self {
        Self {
            name: "Dstack App CA",
            usages: vec![octets(b"app:ca")],
            ca: Some(0),
            eku: vec![],
            ..Self::leaf(app)
        }
    }

    pub fn root() -> Self {
        Self {
            name: "Dstack KMS CA",
            app_ids: vec![],
            usages: vec![],
            ca: Some(1),
            eku: vec![],
            ..Self::leaf(id(0))
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Dstack");
        params.distinguished_name.push(DnType::CommonName, self.name);
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        params.extended_key_usages = self.eku.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if let Some(depth) = self.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        if let Some(usages) = &self.key_usages {
            params.key_usages = usages.clone();
        }
        if let Some(name) = self.san {
            params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        }
        if let Some(name) = self.permitted {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
                excluded_subtrees: vec![],
            });
        }
        if let Some(id) = &self.key_id {
            params.use_authority_key_identifier_extension = true;
            params.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
        }
        if self.padding > 0 {
            let padding = CustomExtension::from_oid_content(PADDING, vec![7; self.padding]);
            params.custom_extensions.push(padding);
        }
        let values = [(APP_ID, &self.app_ids), (USAGE, &self.usages)];
        for (oid, values) in values {
            for value in values {
                let mut extension = CustomExtension::from_oid_content(oid, value.clone());
                extension.set_criticality(self.critical);
                params.custom_extensions.push(extension);
            }
        }
        params
    }
}

/// A certificate with its key, able to sign others.
pub struct Signed {
    pub der: CertificateDer<'static>,
    pub pem: String,
    key: Arc<KeyPair>,
    params: CertificateParams,
}

impl Signed {
    pub fn root(shape: &Shape) -> Self {
        let (params, key) = (shape.params(), KeyPair::generate_for(shape.algorithm).unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Self {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key: Arc::new(key),
            params,
        }
    }

    pub fn sign(&self, shape: &Shape) -> Self {
        let (params, key) = (shape.params(), KeyPair::generate_for(shape.algorithm).unwrap());
        let issuer = Issuer::from_params(&self.params, self.key.as_ref());
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key: Arc::new(key),
            params,
        }
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

/// A well-made app below `root`.
pub fn app(root: &Signed, app: AppId) -> (Signed, Signed) {
    let ca = root.sign(&Shape::app_ca(app));
    (ca.sign(&Shape::leaf(app)), ca)
}
