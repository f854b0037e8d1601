//! Chains that say "I am the app `0xaa`", true and false ones, and what has to become of each at every door.

use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::pki::{Shape, Signed, app, id, octets};

const THEM: u8 = 0xaa;
const OTHER: u8 = 0xbb;

/// One chain, with the key of its leaf.
pub struct Claim {
    pub what: String,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// When it answers our call: the code of the refusal, `OK` when it is believed.
    pub called: &'static str,
    /// When it calls us, a backend that lists `0xaa` only: the status it gets behind nginx.
    pub calling: u16,
}

impl Claim {
    /// The status it gets from the built-in front, which reads the whole chain: as strict as when it answers us, but for
    /// the other purpose. Of another app it can say that it is not allowed only when its chain is in order.
    pub fn calling_builtin(&self) -> u16 {
        match self.what.as_str() {
            "for calling only" | "a CA for calling only" => 200,
            "for answering only" => 401,
            "another app" => 403,
            _ if self.called == OK => 200,
            _ => 401,
        }
    }
}

pub const OK: &str = "OK";

/// nginx hands the leaf alone to whoever decides, so what is wrong with its App CA's app id is not seen there. See
/// "A limit to know" in docs/security.md.
const UNSEEN: u16 = 200;

/// A root that would let anything stand below it: what is refused is not refused for its path length.
pub fn root() -> Signed {
    Signed::root(&Shape::root().with(|s| s.ca = Some(5)))
}

/// All of them, below `root`.
pub fn claims(root: &Signed) -> Vec<Claim> {
    let mut all = Claims {
        root,
        list: Vec::new(),
    };
    all.genuine();
    all.app_ids();
    all.encodings();
    all.usages();
    all.times();
    all.shapes();
    all.authorities();
    all.list
}

struct Claims<'r> {
    root: &'r Signed,
    list: Vec<Claim>,
}

fn leaf() -> Shape {
    Shape::leaf(id(THEM))
}

fn ca() -> Shape {
    Shape::app_ca(id(THEM))
}

impl Claims<'_> {
    fn add(&mut self, what: &str, called: &'static str, calling: u16, leaf: &Signed, rest: &[&Signed]) {
        let rest = rest.iter().map(|certificate| certificate.der.clone());
        self.list.push(Claim {
            what: what.to_owned(),
            chain: std::iter::once(leaf.der.clone()).chain(rest).collect(),
            key: leaf.key(),
            called,
            calling,
        });
    }

    /// A chain of the usual length with these two.
    fn pair(&mut self, what: &str, called: &'static str, calling: u16, ca: Shape, leaf: Shape) {
        let ca = self.root.sign(&ca);
        self.add(what, called, calling, &ca.sign(&leaf), &[&ca]);
    }

    /// What other versions of the platform make, and what does no harm.
    fn genuine(&mut self) {
        let (theirs, their_ca) = app(self.root, id(THEM));
        let (_, other_ca) = app(self.root, id(OTHER));
        let stranger = Signed::root(&Shape::leaf(id(OTHER)));
        self.add("as a KMS makes it", OK, 200, &theirs, &[&their_ca]);
        self.add("with the root", OK, 200, &theirs, &[&their_ca, self.root]);
        self.add("with a stranger", OK, 200, &theirs, &[&their_ca, &stranger]);
        self.add("after a stranger", OK, 200, &theirs, &[&stranger, &their_ca]);
        // OpenSSL takes the first of that name, and it did not sign.
        self.add(
            "after another's App CA",
            OK,
            401,
            &theirs,
            &[&other_ca, &their_ca],
        );
        self.add("with another's App CA", OK, 200, &theirs, &[&their_ca, &other_ca]);
        let bare = |s: Shape| {
            s.with(|s| {
                s.usages.clear();
                s.eku.clear();
            })
        };
        self.pair("without usages", OK, 200, bare(ca()), bare(leaf()));
        let no_key_usage = ca().with(|s| s.key_usages = Some(vec![]));
        self.pair("an App CA without key usage", OK, 200, no_key_usage, leaf());
        self.pair(
            "named",
            OK,
            200,
            ca(),
            leaf().with(|s| s.san = Some("app.example")),
        );
        self.pair("with a quote", OK, 200, ca(), leaf().with(|s| s.padding = 20_000));
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let with = |s: Shape| s.with(|s| s.algorithm = algorithm);
            self.pair(&format!("{algorithm:?}"), OK, 200, with(ca()), with(leaf()));
        }
    }

    fn app_ids(&mut self) {
        let none = |s: Shape| s.with(|s| s.app_ids.clear());
        let other = || Shape::leaf(id(OTHER));
        let mismatch = "identity_mismatch";
        self.pair("another app", mismatch, 403, Shape::app_ca(id(OTHER)), other());
        self.pair("id on the leaf only", mismatch, UNSEEN, none(ca()), leaf());
        self.pair("id on the CA only", "no_app_id", 401, ca(), none(leaf()));
        self.pair("no id", "no_app_id", 401, none(ca()), none(leaf()));
        self.pair(
            "another id on the CA",
            mismatch,
            UNSEEN,
            Shape::app_ca(id(OTHER)),
            leaf(),
        );
        self.pair("another id on the leaf", mismatch, 403, ca(), other());
        let critical = |s: Shape| s.with(|s| s.critical = true);
        self.pair(
            "critical ids",
            "untrusted_chain",
            401,
            critical(ca()),
            critical(leaf()),
        );
        self.pair("a critical id", "untrusted_chain", 401, ca(), critical(leaf()));
    }

    fn encodings(&mut self) {
        let raw = [THEM; 20];
        let der = |head: &[u8], content: &[u8]| [head, content].concat();
        for (what, values) in [
            ("the id twice", vec![octets(&raw), octets(&raw)]),
            ("two ids", vec![octets(&raw), octets(&[OTHER; 20])]),
            ("19 bytes", vec![octets(&raw[1..])]),
            ("21 bytes", vec![octets(&[THEM; 21])]),
            ("0 bytes", vec![octets(b"")]),
            ("no value", vec![vec![]]),
            ("not wrapped", vec![raw.to_vec()]),
            ("wrapped once more", vec![octets(&octets(&raw))]),
            ("in a sequence", vec![der(&[0x30, 22], &octets(&raw))]),
            ("a UTF-8 string", vec![der(&[0x0c, 20], &raw)]),
            ("a bit string", vec![der(&[0x03, 21, 0], &raw)]),
            ("an implicit tag", vec![der(&[0x80, 20], &raw)]),
            ("constructed", vec![der(&[0x24, 22], &octets(&raw))]),
            ("a long length", vec![der(&[0x04, 0x81, 20], &raw)]),
            ("a longer length", vec![der(&[0x04, 0x82, 0, 20], &raw)]),
            (
                "an indefinite length",
                vec![der(&[0x24, 0x80], &der(&octets(&raw), &[0, 0]))],
            ),
            ("a byte behind", vec![der(&octets(&raw), &[0])]),
            ("an id behind", vec![der(&octets(&raw), &octets(&[OTHER; 20]))]),
            ("a length beyond the end", vec![der(&[0x04, 21], &raw)]),
            ("hex", vec![octets(id(THEM).to_string().as_bytes())]),
        ] {
            let bad = |s: Shape| s.with(|s| s.app_ids = values.clone());
            self.pair(what, "bad_certificate", 401, ca(), bad(leaf()));
            self.pair(
                &format!("{what}, on the CA"),
                "bad_certificate",
                UNSEEN,
                bad(ca()),
                leaf(),
            );
        }
    }

    fn usages(&mut self) {
        for text in [
            "kms:rpc",
            "app:ca",
            "APP:CUSTOM",
            "app:custom\0",
            "app:custom2",
            "app",
            "",
        ] {
            let other = leaf().with(|s| s.usages = vec![octets(text.as_bytes())]);
            self.pair(&format!("usage {text:?}"), "wrong_usage", 401, ca(), other);
        }
        let twice = vec![octets(b"app:custom"), octets(b"app:custom")];
        for (what, usages) in [
            ("no text", vec![octets(b"\xff\xfe")]),
            ("a usage that is not wrapped", vec![b"app:custom".to_vec()]),
            ("two usages", twice),
        ] {
            let bad = leaf().with(|s| s.usages = usages);
            self.pair(what, "bad_certificate", 401, ca(), bad);
        }
        let apps = ca().with(|s| s.usages = vec![octets(b"app:custom")]);
        self.pair("an App CA that is an app", "wrong_usage", UNSEEN, apps, leaf());

        let (server, client) = (
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        let only = |s: Shape, purpose: &ExtendedKeyUsagePurpose| s.with(|s| s.eku = vec![purpose.clone()]);
        self.pair("for answering only", OK, 401, ca(), only(leaf(), &server));
        self.pair(
            "for calling only",
            "wrong_usage",
            200,
            ca(),
            only(leaf(), &client),
        );
        self.pair(
            "a CA for calling only",
            "wrong_usage",
            200,
            only(ca(), &client),
            leaf(),
        );
        let mail = only(leaf(), &ExtendedKeyUsagePurpose::EmailProtection);
        self.pair("for mail", "wrong_usage", 401, ca(), mail);
    }

    fn times(&mut self) {
        let now = OffsetDateTime::now_utc();
        let expired = |s: Shape| s.with(|s| s.not_after = now - Duration::from_secs(9));
        let early = |s: Shape| s.with(|s| s.not_before = now + Duration::from_secs(900));
        self.pair("expired", "expired", 401, ca(), expired(leaf()));
        self.pair("an expired CA", "expired", 401, expired(ca()), leaf());
        self.pair("too early", "not_yet_valid", 401, ca(), early(leaf()));
        self.pair("a CA too early", "not_yet_valid", 401, early(ca()), leaf());
    }

    /// Right certificates in the wrong places.
    fn shapes(&mut self) {
        let untrusted = "untrusted_chain";
        let (theirs, their_ca) = app(self.root, id(THEM));
        self.add("no App CA", untrusted, 401, &theirs, &[]);
        self.add("only root and leaf", untrusted, 401, &theirs, &[self.root]);
        self.add("the App CA first", untrusted, 401, &their_ca, &[&theirs]);
        self.add("the root itself", untrusted, 401, self.root, &[]);
        // The one who could make this is the KMS.
        let direct = self.root.sign(&leaf());
        self.add("signed by the root", untrusted, 200, &direct, &[]);
        let by_leaf = theirs.sign(&leaf());
        self.add(
            "signed by a leaf",
            untrusted,
            401,
            &by_leaf,
            &[&theirs, &their_ca],
        );
        let (root, other) = (self.root, Signed::root(&Shape::leaf(id(OTHER))));
        let many = [&their_ca, &other, &other, root];
        // More than a KMS makes is not read; OpenSSL passes over what it has no use for.
        self.add("five certificates", untrusted, 200, &theirs, &many);

        for name in ["Dstack App CA", "Between"] {
            let wide = self.root.sign(&ca().with(|s| (s.name, s.ca) = (name, Some(3))));
            let second = wide.sign(&ca());
            let what = format!("a chain too long, by {name:?}");
            self.add(&what, untrusted, 401, &second.sign(&leaf()), &[&second, &wide]);
        }
        let deep = their_ca.sign(&ca());
        self.add(
            "beyond the path length",
            untrusted,
            401,
            &deep.sign(&leaf()),
            &[&deep, &their_ca],
        );

        self.add("a damaged signature", untrusted, 401, &theirs, &[&their_ca]);
        let mut damaged = theirs.der.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        self.list.last_mut().unwrap().chain[0] = damaged.into();
    }

    /// Who may sign, and what.
    fn authorities(&mut self) {
        let untrusted = "untrusted_chain";
        let elsewhere = Signed::root(&Shape::root());
        let (theirs, their_ca) = app(&elsewhere, id(THEM));
        self.add("another root", untrusted, 401, &theirs, &[&their_ca]);
        self.add(
            "another root, sent along",
            untrusted,
            401,
            &theirs,
            &[&their_ca, &elsewhere],
        );
        let own = Signed::root(&leaf());
        self.add("signed by itself", untrusted, 401, &own, &[]);

        // The App CAs of all apps have one name; here they have one key identifier, too.
        let same_id = |s: Shape| s.with(|s| s.key_id = Some(vec![7; 20]));
        for (what, shape) in [("", (|s| s) as fn(Shape) -> Shape), (" and key id", same_id)] {
            let real = self.root.sign(&shape(ca()));
            let other = self.root.sign(&shape(Shape::app_ca(id(OTHER))));
            let genuine = real.sign(&shape(leaf()));
            let forged = other.sign(&shape(leaf()));
            let named = |text: &str| format!("{text}, same name{what}");
            self.add(&named("another's App CA"), untrusted, 401, &genuine, &[&other]);
            self.add(&named("another's leaf"), untrusted, 401, &forged, &[&real]);
            let mismatch = "identity_mismatch";
            self.add(
                &named("signed by another app"),
                mismatch,
                UNSEEN,
                &forged,
                &[&other],
            );
        }

        let not_ca = ca().with(|s| s.ca = None);
        self.pair("a CA that is none", untrusted, 401, not_ca, leaf());
        let no_sign = ca().with(|s| s.key_usages = Some(vec![KeyUsagePurpose::DigitalSignature]));
        self.pair("a CA that may not sign", untrusted, 401, no_sign, leaf());
        let leaf_ca = leaf().with(|s| s.ca = Some(0));
        self.pair("a leaf that is a CA", untrusted, 401, ca(), leaf_ca);
        let constrained = ca().with(|s| s.permitted = Some("other.example"));
        let named = leaf().with(|s| s.san = Some("app.example"));
        self.pair("a name outside the CA's", untrusted, 401, constrained, named);
    }
}
