//! Identity under attack: every way a chain can claim an app id that is not its own.

#[path = "mesh/kit/forgeries.rs"]
#[allow(dead_code, unreachable_pub)]
mod forgeries;
#[path = "mesh/kit/pki.rs"]
#[allow(dead_code, unreachable_pub)]
mod pki;

use std::time::Duration;

use dstack_vpc::ratls::{ChainError, Purpose, VerifiedPeer, app_id, usage, verify_chain};
use pki::{Shape, Signed, app, id};
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::{CertificateDer, UnixTime};

fn verify(root: &Signed, chain: &[&Signed]) -> Result<VerifiedPeer, ChainError> {
    let chain: Vec<_> = chain.iter().map(|c| c.der.clone()).collect();
    verify_chain(&chain, &root.der, UnixTime::now(), Purpose::Server)
}

fn code(result: Result<VerifiedPeer, ChainError>) -> &'static str {
    result.expect_err("the chain was accepted").code().name()
}

/// Verifies a chain made of the two shapes under a fresh root.
fn shaped(ca: &Shape, leaf: &Shape) -> Result<VerifiedPeer, ChainError> {
    let root = Signed::root(&Shape::root());
    let ca = root.sign(ca);
    let leaf = ca.sign(leaf);
    verify(&root, &[&leaf, &ca])
}

#[test]
fn a_chain_as_a_kms_makes_it_is_accepted() {
    let root = Signed::root(&Shape::root());
    let (leaf, ca) = app(&root, id(0xaa));
    assert_eq!(verify(&root, &[&leaf, &ca]).unwrap().app_id, id(0xaa));
    assert_eq!(
        verify(&root, &[&leaf, &ca, &root]).unwrap().app_id,
        id(0xaa),
        "with the root"
    );
    assert_eq!(app_id(&leaf.der), Ok(Some(id(0xaa))));
    assert_eq!(app_id(&root.der), Ok(None));
    assert_eq!(usage(&leaf.der), Ok(Some("app:custom".into())));
}

#[test]
fn another_root_is_refused_and_both_roots_are_named() {
    let (ours, theirs) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    let (leaf, ca) = app(&theirs, id(1));
    let error = verify(&ours, &[&leaf, &ca, &theirs]).unwrap_err();
    assert_eq!(error.code().name(), "untrusted_chain");
    let text = error.to_string();
    assert!(
        text.contains("Dstack KMS CA") && text.contains("same KMS"),
        "{text}"
    );
}

#[test]
fn the_purpose_counts_when_the_leaf_names_one() {
    let root = Signed::root(&Shape::root());
    let ca = root.sign(&Shape::app_ca(id(1)));
    let client = ca.sign(&Shape::leaf(id(1)).with(|s| s.eku = vec![ExtendedKeyUsagePurpose::ClientAuth]));
    assert_eq!(code(verify(&root, &[&client, &ca])), "wrong_usage");
    let chain = [client.der, ca.der];
    verify_chain(&chain, &root.der, UnixTime::now(), Purpose::Client).unwrap();
}

#[test]
fn damaged_certificates_are_refused_without_panicking() {
    let root = Signed::root(&Shape::root());
    let (leaf, ca) = app(&root, id(1));
    let check = |leaf: Vec<u8>| {
        let chain = [CertificateDer::from(leaf), ca.der.clone()];
        verify_chain(&chain, &root.der, UnixTime::now(), Purpose::Server)
    };
    check(leaf.der.to_vec()).unwrap();
    for cut in 0..leaf.der.len() {
        check(leaf.der[..cut].to_vec()).unwrap_err();
    }
    check([&leaf.der[..], &[0]].concat()).unwrap_err();
    for position in 0..leaf.der.len() {
        let mut flipped = leaf.der.to_vec();
        flipped[position] ^= 0x01;
        check(flipped).expect_err("every byte is covered by the signature");
    }
}

#[test]
fn each_claim_is_judged_as_it_deserves() {
    let root = forgeries::root();
    for claim in forgeries::claims(&root) {
        let judged = verify_chain(&claim.chain, &root.der, UnixTime::now(), Purpose::Server);
        let code = match &judged {
            Ok(peer) if peer.app_id == id(0xaa) => forgeries::OK,
            Ok(_) => "identity_mismatch",
            Err(error) => error.code().name(),
        };
        assert_eq!(code, claim.called, "{}: {judged:?}", claim.what);
    }
    assert_eq!(code(verify(&root, &[])), "untrusted_chain", "nothing");
}

#[test]
fn no_certificate_outlives_its_root_and_the_first_end_counts() {
    let now = time::OffsetDateTime::now_utc();
    let (ca, leaf) = (Shape::app_ca(id(1)), Shape::leaf(id(1)));
    for (shape, expected) in [
        (
            Shape::root().with(|s| s.not_after = now - Duration::from_secs(60)),
            "expired",
        ),
        (
            Shape::root().with(|s| s.not_before = now + Duration::from_secs(600)),
            "not_yet_valid",
        ),
    ] {
        let root = Signed::root(&shape);
        let (leaf, ca) = app(&root, id(1));
        assert_eq!(code(verify(&root, &[&leaf, &ca])), expected);
    }

    let soon = now + Duration::from_secs(600);
    let peer = shaped(&ca.with(|s| s.not_after = soon), &leaf).unwrap();
    let seconds = peer
        .not_after
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert_eq!(i64::try_from(seconds).unwrap(), soon.unix_timestamp());
}

/// Made with openssl (`weak_keys/make`), because no current library makes such. What is weak in a leaf's own key shows in
/// the handshake, see `tests/mesh/openssl.rs`.
#[test]
fn weak_keys_and_signatures_do_not_vouch() {
    use rustls_pki_types::pem::PemObject;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weak_keys");
    let root = CertificateDer::from_pem_file(folder.join("root.pem")).unwrap();
    for (name, expected) in [
        ("strong_rsa", "OK"),
        ("strong_pss", "OK"),
        ("ca_rsa1024", "untrusted_chain"),
        ("ca_p192", "untrusted_chain"),
        ("ca_p224", "untrusted_chain"),
        ("ca_sha1", "untrusted_chain"),
        ("leaf_sha1", "untrusted_chain"),
        ("leaf_md5", "untrusted_chain"),
    ] {
        let path = folder.join(name).with_extension("pem");
        let certificates = CertificateDer::pem_file_iter(path).unwrap();
        let chain: Vec<_> = certificates.map(Result::unwrap).collect();
        let judged = verify_chain(&chain, &root, UnixTime::now(), Purpose::Server);
        assert_eq!(
            judged.map_or_else(|e| e.code().name(), |_| "OK"),
            expected,
            "{name}"
        );
    }
}
