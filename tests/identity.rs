//! What is taken for an identity, and what is not. The store's own tests are beside it.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use dstack_vpc::agent::dev::pki::{app_id_extension, usage_extension};
use dstack_vpc::agent::dev::{Forgery, Issued, LeafRequest, Pki};
use dstack_vpc::identity::{self, CheckError, Checked, check};
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;

const HOUR: Duration = Duration::from_secs(3600);

fn app() -> AppId {
    AppId::from_bytes([0xa1; 20])
}

fn other_app() -> AppId {
    AppId::from_bytes([0xb2; 20])
}

fn issue(request: LeafRequest) -> Issued {
    Pki::new().unwrap().issue(&app(), &request).unwrap()
}

fn checked(issued: &Issued) -> Result<Checked, CheckError> {
    check(
        &issued.key_pem,
        &issued.chain_pems.concat(),
        Some(app()),
        SystemTime::now(),
    )
}

fn refused(issued: &Issued) -> String {
    match checked(issued) {
        Ok(_) => panic!("taken for an identity"),
        Err(e) => e.to_string(),
    }
}

fn forged(forgery: Forgery) -> LeafRequest {
    LeafRequest {
        forgery,
        ..LeafRequest::both()
    }
}

#[test]
fn what_a_kms_issues_is_an_identity() {
    let not_after = SystemTime::now() + 24 * HOUR;
    let issued = issue(LeafRequest {
        not_before: Some(SystemTime::now() - HOUR),
        not_after: Some(not_after),
        ..LeafRequest::both()
    });
    let identity = checked(&issued).unwrap();
    assert_eq!(identity.app_id, Some(app()));
    assert_eq!(identity.chain, issued.chain()[..2]);
    assert_eq!(identity.root, issued.chain()[2]);
    assert!(not_after.duration_since(identity.not_after).unwrap() < Duration::from_secs(1));
    // App CA and leaf have the app id from attestation; Info merely repeats it.
    let unknown = check(
        &issued.key_pem,
        &issued.chain_pems.concat(),
        None,
        SystemTime::now(),
    )
    .unwrap();
    assert_eq!(unknown.app_id, Some(app()));
}

#[test]
fn without_a_kms_it_is_one_without_an_app_id() {
    let issued = Pki::issue_without_kms(&LeafRequest::both()).unwrap();
    let identity = checked(&issued).unwrap();
    assert_eq!(identity.app_id, None);
    assert_eq!(identity.chain.len(), 1);
    let expired = Pki::issue_without_kms(&LeafRequest {
        not_after: Some(SystemTime::now() - HOUR),
        ..LeafRequest::both()
    });
    assert!(refused(&expired.unwrap()).contains("it expired"));
}

#[test]
fn every_departure_is_refused_with_its_reason() {
    let extensions = |leaf, ca| {
        forged(Forgery {
            leaf_extensions: leaf,
            ca_extensions: ca,
        })
    };
    let cases = [
        (
            extensions(Some(vec![usage_extension("app:custom")]), None),
            "carries no app id",
        ),
        (
            extensions(
                None,
                Some(vec![app_id_extension(&other_app()), usage_extension("app:ca")]),
            ),
            "but its App CA belongs to b2b2",
        ),
        (
            extensions(None, Some(vec![usage_extension("app:ca")])),
            "but its App CA belongs to no app",
        ),
        (
            extensions(
                Some(vec![app_id_extension(&app()), usage_extension("kms:rpc")]),
                None,
            ),
            "is for the usage \"kms:rpc\"",
        ),
        (
            extensions(
                Some(vec![app_id_extension(&app()), app_id_extension(&other_app())]),
                None,
            ),
            "more than once",
        ),
        (
            extensions(
                Some(vec![
                    app_id_extension(&other_app()),
                    usage_extension("app:custom"),
                ]),
                Some(vec![app_id_extension(&other_app()), usage_extension("app:ca")]),
            ),
            "is for the app b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2, and this is the app a1a1",
        ),
        (
            LeafRequest {
                not_after: Some(SystemTime::now() - HOUR),
                ..LeafRequest::both()
            },
            "expired",
        ),
        (
            LeafRequest {
                not_before: Some(SystemTime::now() + HOUR),
                ..LeafRequest::both()
            },
            "clocks is wrong",
        ),
        (
            LeafRequest {
                client_auth: false,
                ..LeafRequest::both()
            },
            "may not be used for calling",
        ),
        (
            LeafRequest {
                server_auth: false,
                ..LeafRequest::both()
            },
            "may not be used for answering",
        ),
    ];
    for (request, reason) in cases {
        let error = refused(&issue(request));
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn keys_and_chains_must_belong_together() {
    let (one, two) = (issue(LeafRequest::both()), issue(LeafRequest::both()));
    let with_key = |key: &str| Issued {
        key_pem: key.to_owned(),
        ..one.clone()
    };
    let with_chain = |chain: &[&String]| Issued {
        chain_pems: chain.iter().map(|pem| pem.to_string()).collect(),
        ..one.clone()
    };
    let [leaf, ca, root] = &one.chain_pems[..] else {
        panic!("three")
    };
    let other_root = &two.chain_pems[2];
    for (issued, reason) in [
        (
            with_key(&two.key_pem),
            "the key does not belong to the certificate",
        ),
        (with_key("SECRET"), "the key is not PEM"),
        (
            with_key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "not one that TLS can use",
        ),
        (with_chain(&[]), "chain of 0 certificates"),
        (with_chain(&[leaf]), "chain of 1 certificates"),
        (with_chain(&[leaf, ca, ca, ca, root]), "chain of 5 certificates"),
        // The chain of the 0.5.4 release image: what is seen, and what to do.
        (with_chain(&[leaf, root]), "does not lead to its root"),
        (with_chain(&[leaf, ca, other_root]), "does not lead to its root"),
        (with_chain(&[leaf, root, ca]), "the last certificate is no root"),
        (with_chain(&[ca, leaf, root]), "the key does not belong"),
    ] {
        let error = refused(&issued);
        assert!(
            error.contains(reason) && !error.contains("SECRET"),
            "{reason}: {error}"
        );
    }
    let error = refused(&with_chain(&[leaf, root]));
    for part in [
        "1. \"CN=localhost\" issued by \"O=Dstack, CN=Dstack App CA\"",
        "2. \"O=Dstack, CN=Dstack KMS CA\"",
        "its root \"O=Dstack, CN=Dstack KMS CA\"",
        "another image version",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever byte of leaf or App CA is another, it is no identity, and nothing panics over it.
    #[test]
    fn no_byte_can_be_changed(which in 0..2usize, place in proptest::prelude::any::<usize>(), flip in 1..=255u8) {
        static ISSUED: std::sync::LazyLock<Issued> = std::sync::LazyLock::new(|| issue(LeafRequest::both()));
        let mut ders = ISSUED.chain().iter().map(|der| der.to_vec()).collect::<Vec<_>>();
        let place = place % ders[which].len();
        ders[which][place] ^= flip;
        let issued = Issued {
            key_pem: ISSUED.key_pem.clone(),
            chain_pems: ders.into_iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der))).collect(),
        };
        proptest::prop_assert!(checked(&issued).is_err(), "byte {place} of certificate {which} ^ {flip:#x}");
    }

    /// Nor over text that is anything.
    #[test]
    fn any_text_is_refused(key in ".*", chain in ".*") {
        proptest::prop_assert!(check(&key, &chain, None, SystemTime::now()).is_err());
    }
}

/// The only test here that writes: the umask belongs to the whole process.
#[test]
fn nothing_stored_can_be_read_by_others_at_any_moment_whatever_the_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::new(home.path().join("state"));
    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                looks += look(&state.identity());
            }
            looks
        });
        let pki = Pki::new().unwrap();
        for _ in 0..30 {
            let issued = pki.issue(&app(), &LeafRequest::both()).unwrap();
            identity::store(&state, checked(&issued).unwrap(), None).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(looks > 100, "{looks} files seen");
    assert_eq!(look(&state.identity()), 30 * 4 + 1);
}

/// Counts what is there, links included, after seeing that all of it is private.
fn look(dir: &std::path::Path) -> u32 {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // It may have been renamed meanwhile.
        let Ok(about) = entry.path().symlink_metadata() else {
            continue;
        };
        count += 1;
        assert!(
            about.is_symlink() || about.mode() & 0o077 == 0,
            "{:?} has mode {:o}",
            entry.path(),
            about.mode()
        );
        if about.is_dir() {
            count += look(&entry.path());
        }
    }
    count
}
