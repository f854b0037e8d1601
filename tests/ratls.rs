//! Identity under attack: every way a chain can claim an app id that is not its own.

#[path = "mesh/kit/pki.rs"]
#[allow(dead_code, unreachable_pub)]
mod pki;

use std::time::Duration;

use dstack_vpc::ratls::{ChainError, Purpose, VerifiedPeer, app_id, usage, verify_chain};
use pki::{Shape, Signed, app, id, octets};
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::{CertificateDer, UnixTime};

fn verify(root: &Signed, chain: &[&Signed]) -> Result<VerifiedPeer, ChainError> {
    let chain: Vec<_> = chain.iter().map(|c| c.der.clone()).collect();
    verify_chain(&chain, &root.der, UnixTime::now(), Purpose::Server)
}

fn code(result: Result<VerifiedPeer, ChainError>) -> &'static str {
    result.expect_err("the chain was accepted").code()
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
fn absent_usage_and_absent_eku_are_accepted() {
    let bare = |s: Shape| {
        s.with(|s| {
            s.usages.clear();
            s.eku.clear();
        })
    };
    shaped(&bare(Shape::app_ca(id(1))), &bare(Shape::leaf(id(1)))).unwrap();
}

#[test]
fn the_app_id_must_stand_on_both_and_be_the_same() {
    let none = |s: Shape| s.with(|s| s.app_ids.clear());
    let (ca, leaf) = (Shape::app_ca(id(1)), Shape::leaf(id(1)));
    assert_eq!(
        code(shaped(&none(ca.clone()), &leaf)),
        "identity_mismatch",
        "only on the leaf"
    );
    assert_eq!(
        code(shaped(&ca, &none(leaf.clone()))),
        "no_app_id",
        "only on the CA"
    );
    assert_eq!(
        code(shaped(&none(ca.clone()), &none(leaf))),
        "no_app_id",
        "nowhere"
    );
    assert_eq!(
        code(shaped(&ca, &Shape::leaf(id(2)))),
        "identity_mismatch",
        "different"
    );
}

#[test]
fn the_app_id_has_one_encoding() {
    let raw = [1; 20];
    let der = |tag: u8, length: u8, content: &[u8]| [&[tag, length], content].concat();
    for (what, values) in [
        ("twice", vec![octets(&raw), octets(&raw)]),
        ("twice, different", vec![octets(&raw), octets(&[2; 20])]),
        ("19 bytes", vec![octets(&raw[..19])]),
        ("21 bytes", vec![octets(&[1; 21])]),
        ("empty", vec![octets(b"")]),
        ("no value", vec![vec![]]),
        ("not wrapped", vec![raw.to_vec()]),
        ("wrong tag", vec![der(0x0c, 20, &raw)]),
        ("constructed", vec![der(0x24, 20, &raw)]),
        ("length in long form", vec![[&[4, 0x81, 20], &raw[..]].concat()]),
        ("trailing byte", vec![der(4, 20, &[1; 21])]),
        ("length beyond the end", vec![der(4, 21, &raw)]),
        ("hex text", vec![octets(id(1).to_string().as_bytes())]),
    ] {
        let bad = |s: Shape| s.with(|s| s.app_ids = values.clone());
        assert_eq!(
            code(shaped(&Shape::app_ca(id(1)), &bad(Shape::leaf(id(1))))),
            "bad_certificate",
            "{what}"
        );
        assert_eq!(
            code(shaped(&bad(Shape::app_ca(id(1))), &Shape::leaf(id(1)))),
            "bad_certificate",
            "{what}, CA"
        );
    }
}

#[test]
fn other_usages_are_not_apps() {
    for (text, expected) in [
        (octets(b"kms:rpc"), "wrong_usage"),
        (octets(b"app:ca"), "wrong_usage"),
        (octets(b"APP:CUSTOM"), "wrong_usage"),
        (octets(b"app:custom\0"), "wrong_usage"),
        (octets(b""), "wrong_usage"),
        (octets(b"\xff\xfe"), "bad_certificate"),
        (b"app:custom".to_vec(), "bad_certificate"),
    ] {
        let leaf = Shape::leaf(id(1)).with(|s| s.usages = vec![text.clone()]);
        assert_eq!(code(shaped(&Shape::app_ca(id(1)), &leaf)), expected, "{text:?}");
    }
    let twice = Shape::leaf(id(1)).with(|s| s.usages.push(octets(b"app:custom")));
    assert_eq!(code(shaped(&Shape::app_ca(id(1)), &twice)), "bad_certificate");
    let leaf_as_ca = Shape::app_ca(id(1)).with(|s| s.usages = vec![octets(b"app:custom")]);
    assert_eq!(code(shaped(&leaf_as_ca, &Shape::leaf(id(1)))), "wrong_usage");
}

#[test]
fn time_is_checked_on_leaf_and_app_ca() {
    let now = time::OffsetDateTime::now_utc();
    let expired = |s: Shape| s.with(|s| s.not_after = now - Duration::from_secs(60));
    let future = |s: Shape| s.with(|s| s.not_before = now + Duration::from_secs(600));
    let (ca, leaf) = (Shape::app_ca(id(1)), Shape::leaf(id(1)));
    assert_eq!(code(shaped(&ca, &expired(leaf.clone()))), "expired");
    assert_eq!(code(shaped(&expired(ca.clone()), &leaf)), "expired");
    assert_eq!(code(shaped(&ca, &future(leaf.clone()))), "not_yet_valid");
    assert_eq!(code(shaped(&future(ca.clone()), &leaf)), "not_yet_valid");

    let soon = now + Duration::from_secs(600);
    let peer = shaped(&ca.with(|s| s.not_after = soon), &leaf).unwrap();
    let seconds = peer
        .not_after
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert_eq!(
        i64::try_from(seconds).unwrap(),
        soon.unix_timestamp(),
        "the earlier end counts"
    );
}

#[test]
fn another_root_is_refused_and_both_roots_are_named() {
    let (ours, theirs) = (Signed::root(&Shape::root()), Signed::root(&Shape::root()));
    let (leaf, ca) = app(&theirs, id(1));
    let error = verify(&ours, &[&leaf, &ca, &theirs]).unwrap_err();
    assert_eq!(error.code(), "untrusted_chain");
    let text = error.to_string();
    assert!(
        text.contains("Dstack KMS CA") && text.contains("same KMS"),
        "{text}"
    );
}

#[test]
fn another_apps_ca_of_the_same_name_does_not_vouch() {
    let root = Signed::root(&Shape::root());
    let (leaf, _) = app(&root, id(1));
    let (_, other_ca) = app(&root, id(2));
    assert_eq!(code(verify(&root, &[&leaf, &other_ca])), "untrusted_chain");

    // Offered both, the one that signed it counts, whatever the order.
    let (leaf, ca) = app(&root, id(1));
    assert_eq!(verify(&root, &[&leaf, &other_ca, &ca]).unwrap().app_id, id(1));

    // An app that signs a leaf in another app's name with its own CA.
    let forged = other_ca.sign(&Shape::leaf(id(1)));
    assert_eq!(code(verify(&root, &[&forged, &other_ca])), "identity_mismatch");
    assert_eq!(
        code(verify(&root, &[&forged, &ca, &other_ca])),
        "identity_mismatch"
    );
}

#[test]
fn chains_of_another_shape_are_refused() {
    let root = Signed::root(&Shape::root().with(|s| s.ca = Some(5)));
    let (leaf, ca) = app(&root, id(1));
    assert_eq!(code(verify(&root, &[])), "untrusted_chain", "nothing");
    assert_eq!(code(verify(&root, &[&leaf])), "untrusted_chain", "no App CA");
    assert_eq!(code(verify(&root, &[&ca, &leaf])), "untrusted_chain", "CA first");
    assert_eq!(
        code(verify(&root, &[&root])),
        "untrusted_chain",
        "the root itself"
    );
    assert_eq!(
        code(verify(&root, &[&leaf, &ca, &root, &root, &root])),
        "untrusted_chain",
        "too many"
    );

    let direct = root.sign(&Shape::leaf(id(1)));
    assert_eq!(
        code(verify(&root, &[&direct])),
        "untrusted_chain",
        "signed by the root"
    );

    let by_leaf = leaf.sign(&Shape::leaf(id(1)));
    assert_eq!(
        code(verify(&root, &[&by_leaf, &leaf, &ca])),
        "untrusted_chain",
        "leaf as CA"
    );

    let wide_ca = root.sign(&Shape::app_ca(id(1)).with(|s| s.ca = Some(3)));
    let second = wide_ca.sign(&Shape::app_ca(id(1)));
    let long = second.sign(&Shape::leaf(id(1)));
    assert_eq!(
        code(verify(&root, &[&long, &second, &wide_ca])),
        "untrusted_chain",
        "too long"
    );

    let deep = ca.sign(&Shape::app_ca(id(1)));
    let beyond = deep.sign(&Shape::leaf(id(1)));
    assert_eq!(
        code(verify(&root, &[&beyond, &deep, &ca])),
        "untrusted_chain",
        "beyond pathlen 0"
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
fn other_strong_key_types_are_accepted() {
    let with = |algorithm| {
        shaped(
            &Shape::app_ca(id(1)).with(|s| s.algorithm = algorithm),
            &Shape::leaf(id(1)).with(|s| s.algorithm = algorithm),
        )
    };
    with(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    with(&rcgen::PKCS_ED25519).unwrap();
}

/// Made with openssl, because no current library makes such keys: `[leaf, App CA with an RSA key, root]`.
#[test]
fn short_rsa_keys_do_not_vouch() {
    use rustls_pki_types::pem::PemObject;
    let verify = |pem: &[u8]| {
        let mut chain: Vec<_> = CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect();
        let root = chain.pop().unwrap();
        verify_chain(&chain, &root, UnixTime::now(), Purpose::Server)
    };
    assert_eq!(
        verify(include_bytes!("weak_keys/rsa2048.pem")).unwrap().app_id,
        id(0xaa)
    );
    assert_eq!(
        code(verify(include_bytes!("weak_keys/rsa1024.pem"))),
        "untrusted_chain"
    );
}
