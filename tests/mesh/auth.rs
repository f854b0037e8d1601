//! The auth service as nginx calls it.

use std::collections::BTreeMap;
use std::time::Duration;

use dstack_vpc::spec::AllowedApps;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::kit::pki::{Shape, Signed, app, id, octets};
use crate::kit::*;

fn escape(pem: &str) -> String {
    utf8_percent_encode(pem, NON_ALPHANUMERIC).to_string()
}

fn leaf(root: &Signed, shape: Shape) -> String {
    escape(&root.sign(&Shape::app_ca(id(THEM))).sign(&shape).pem)
}

fn ask(verify: &str, certificate: &str, more: &str) -> String {
    format!(
        "GET /auth HTTP/1.1\r\nhost: auth\r\nx-client-verify: {verify}\r\nx-client-cert: {certificate}\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn a_verified_app_is_named_and_let_in_by_the_backends_list() {
    let root = Signed::root(&Shape::root());
    let only = |n| AllowedApps::from_iter([id(n)]);
    let mut wanted = settings(None);
    wanted.backends = BTreeMap::from([
        ("open".parse().unwrap(), AllowedApps::Any),
        ("theirs".parse().unwrap(), only(THEM)),
        ("others".parse().unwrap(), only(0xbb)),
    ]);
    let us = OurSide::start(&root, wanted.clone()).await;
    let certificate = escape(&app(&root, id(THEM)).0.pem);
    let mut nginx = Client::connect(us.auth).await;
    for (backend, status, code) in [
        ("", 200, "-"),
        ("x-dstack-backend: open\r\n", 200, "-"),
        ("x-dstack-backend: theirs\r\n", 200, "-"),
        ("x-dstack-backend: others\r\n", 403, "not_allowed"),
        ("x-dstack-backend: nowhere\r\n", 403, "unknown_backend"),
        ("x-dstack-backend: ../x\r\n", 403, "unknown_backend"),
        ("x-dstack-backend: \r\n", 403, "unknown_backend"),
        (
            "x-dstack-backend: open\r\nx-dstack-backend: others\r\n",
            401,
            "bad_certificate",
        ),
    ] {
        // The second time from memory.
        for _ in 0..2 {
            let answer = nginx.call(&ask("SUCCESS", &certificate, backend)).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (status, code),
                "{backend}"
            );
            let named = if status == 200 { vec![them()] } else { vec![] };
            assert_eq!(answer.all("x-dstack-app-id"), named);
        }
    }

    wanted.backends.insert("theirs".parse().unwrap(), only(0xbb));
    us.mesh.update(wanted).await.unwrap();
    let answer = nginx
        .call(&ask("SUCCESS", &certificate, "x-dstack-backend: theirs\r\n"))
        .await;
    assert_eq!(answer.status, 403, "on the same connection, at once");
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn nobody_else_gets_in() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let (leaf_, ca) = app(&root, id(THEM));
    let good = escape(&leaf_.pem);
    let two = escape(&format!("{}{}", leaf_.pem, ca.pem));
    let shaped = |change: fn(&mut Shape)| leaf(&root, Shape::leaf(id(THEM)).with(change));
    let base64 = leaf_.pem.lines().nth(1).unwrap();
    for (what, verify, certificate, code) in [
        (
            "not verified",
            "FAILED:unable to verify",
            good.clone(),
            "untrusted_chain",
        ),
        ("no certificate", "NONE", String::new(), "no_certificate"),
        ("empty verify", "", good.clone(), "no_certificate"),
        ("lower case", "success", good.clone(), "untrusted_chain"),
        ("more after", "SUCCESS,", good.clone(), "untrusted_chain"),
        ("empty certificate", "SUCCESS", String::new(), "bad_certificate"),
        ("two certificates", "SUCCESS", two, "bad_certificate"),
        ("junk before", "SUCCESS", format!("x{good}"), "bad_certificate"),
        ("junk after", "SUCCESS", format!("{good}x"), "bad_certificate"),
        (
            "bad escape",
            "SUCCESS",
            good.replacen("%2D", "%2", 1),
            "bad_certificate",
        ),
        (
            "escape at the end",
            "SUCCESS",
            format!("{good}%"),
            "bad_certificate",
        ),
        ("escaped twice", "SUCCESS", escape(&good), "bad_certificate"),
        (
            "a key",
            "SUCCESS",
            escape(&leaf_.pem.replace("CERTIFICATE", "PRIVATE KEY")),
            "bad_certificate",
        ),
        (
            "cut",
            "SUCCESS",
            escape(&leaf_.pem.replace(base64, "")),
            "bad_certificate",
        ),
        ("65 KiB", "SUCCESS", "A".repeat(65 * 1024), "bad_certificate"),
        (
            "expired",
            "SUCCESS",
            shaped(|s| s.not_after = time::OffsetDateTime::now_utc() - Duration::from_secs(5)),
            "expired",
        ),
        (
            "too early",
            "SUCCESS",
            shaped(|s| s.not_before = time::OffsetDateTime::now_utc() + Duration::from_secs(50)),
            "expired",
        ),
        ("no id", "SUCCESS", shaped(|s| s.app_ids.clear()), "no_app_id"),
        (
            "two ids",
            "SUCCESS",
            shaped(|s| s.app_ids.push(octets(&[1; 20]))),
            "bad_certificate",
        ),
        (
            "short id",
            "SUCCESS",
            shaped(|s| s.app_ids = vec![octets(&[1; 19])]),
            "bad_certificate",
        ),
        (
            "KMS usage",
            "SUCCESS",
            shaped(|s| s.usages = vec![octets(b"kms:rpc")]),
            "wrong_usage",
        ),
        ("an App CA", "SUCCESS", escape(&ca.pem), "wrong_usage"),
        ("the root", "SUCCESS", escape(&root.pem), "no_app_id"),
    ] {
        let answer = call(us.auth, &ask(verify, &certificate, "")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, code),
            "{what}: {}",
            answer.text()
        );
        assert!(answer.all("x-dstack-app-id").is_empty());
    }
    for twice in [
        "x-client-verify: SUCCESS\r\n".to_owned(),
        format!("x-client-cert: {good}\r\n"),
    ] {
        assert_eq!(call(us.auth, &ask("SUCCESS", &good, &twice)).await.status, 401);
    }
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn a_remembered_certificate_still_expires() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let end = time::OffsetDateTime::now_utc() + Duration::from_secs(2);
    let certificate = leaf(&root, Shape::leaf(id(THEM)).with(|s| s.not_after = end));
    let mut nginx = Client::connect(us.auth).await;
    assert_eq!(nginx.call(&ask("SUCCESS", &certificate, "")).await.status, 200);
    let left = end - time::OffsetDateTime::now_utc();
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1100)).await;
    assert_eq!(
        nginx.call(&ask("SUCCESS", &certificate, "")).await.code(),
        "expired"
    );
    us.mesh.shutdown().await;
}

#[tokio::test]
async fn only_two_paths_are_served() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: auth\r\n\r\n");
    let health = call(us.auth, &get("/health")).await;
    assert_eq!((health.status, health.text().as_str()), (200, "OK"));
    for path in ["/", "/auth/", "/auth/x", "//auth", "/AUTH", "/info"] {
        assert_eq!(call(us.auth, &get(path)).await.status, 404, "{path}");
    }
    assert_eq!(call(us.auth, &get("/auth")).await.status, 401);
    us.mesh.shutdown().await;
}

/// One certificate has many spellings, and each names the same app or none.
#[tokio::test]
async fn no_spelling_of_a_certificate_names_another() {
    let root = Signed::root(&Shape::root());
    let us = OurSide::start(&root, settings(None)).await;
    let (leaf, other) = (app(&root, id(THEM)).0.pem, app(&root, id(0xbb)).0.pem);
    let good = escape(&leaf);
    let raw = |pem: &str| pem.replace('\n', "%0A");
    let inside = leaf.lines().nth(1).unwrap();
    let spelt = |from: &str, to: &str| escape(&leaf.replacen(from, to, 1));
    let begin = "-----BEGIN CERTIFICATE-----";
    for (what, certificate, let_in) in [
        ("escaped", good.clone(), true),
        (
            "lower-case hex",
            good.replace("%2D", "%2d").replace("%0A", "%0a"),
            true,
        ),
        ("as little as possible", raw(&leaf).replace(' ', "%20"), true),
        ("plus is no space", raw(&leaf).replacen(' ', "+", 1), false),
        ("CRLF", escape(&leaf.replace('\n', "\r\n")), true),
        ("spaces around", escape(&format!(" \n{leaf}\n ")), true),
        ("a NUL before", format!("%00{good}"), false),
        ("a NUL behind", format!("{good}%00"), false),
        ("a NUL inside", good.replacen("%0A", "%0A%00", 1), false),
        ("a NUL in the label", spelt("CERT", "CERT\0"), false),
        ("escaped twice", good.replacen("%2D", "%252D", 1), false),
        ("an overlong form", good.replacen("%2D", "%C0%AD", 1), false),
        ("a wide letter", good.replacen("%2D", "%EF%BC%8D", 1), false),
        ("half an escape", good.replacen("%2D", "%2", 1), false),
        ("no hex", good.replacen("%2D", "%2G", 1), false),
        ("a sign in hex", good.replacen("%2D", "%+D", 1), false),
        ("text before", escape(&format!("subject=x\n{leaf}")), false),
        ("text behind", escape(&format!("{leaf}x")), false),
        ("another before", escape(&format!("{other}{leaf}")), false),
        ("another behind", escape(&format!("{leaf}{other}")), false),
        (
            "another inside",
            spelt(begin, &format!("{begin}\n{}", &other[28..])),
            false,
        ),
        (
            "a header inside",
            spelt(begin, &format!("{begin}\nProc-Type: 4,ENCRYPTED\n")),
            false,
        ),
        (
            "another label",
            escape(&leaf.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
            false,
        ),
        (
            "an old label",
            escape(&leaf.replace("CERTIFICATE", "X509 CERTIFICATE")),
            false,
        ),
        (
            "two labels",
            escape(&leaf.replacen("CERTIFICATE", "PUBLIC KEY", 1)),
            false,
        ),
        ("padding inside", spelt(inside, &format!("{inside}=")), false),
        (
            "the other alphabet",
            spelt(inside, &format!("-_{}", &inside[2..])),
            false,
        ),
        ("without its end", escape(&leaf[..leaf.len() - 30]), false),
        (
            "no PEM",
            escape(
                &leaf
                    .lines()
                    .filter(|line| !line.starts_with('-'))
                    .collect::<String>(),
            ),
            false,
        ),
        ("DER behind DER", escape(&joined(&leaf, &other)), false),
    ] {
        let answer = call(us.auth, &ask("SUCCESS", &certificate, "")).await;
        let expected = if let_in {
            (200, "-")
        } else {
            (401, "bad_certificate")
        };
        assert_eq!(
            (answer.status, answer.code().as_str()),
            expected,
            "{what}: {}",
            answer.text()
        );
        let named = if let_in { vec![them()] } else { vec![] };
        assert_eq!(answer.all("x-dstack-app-id"), named, "{what}");
    }
    us.mesh.shutdown().await;
}

/// Two certificates in one PEM block.
fn joined(one: &str, two: &str) -> String {
    let der = |text: &str| pem::parse(text).unwrap().into_contents();
    pem::encode(&pem::Pem::new("CERTIFICATE", [der(one), der(two)].concat()))
}
