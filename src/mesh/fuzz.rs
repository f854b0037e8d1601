//! The header by which nginx hands over a caller's certificate.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use hyper::body::Body as _;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustls_pki_types::CertificateDer;

use super::auth::Auth;
pub use super::outbound::fuzz::target_headers;
use super::tally::Pen;
use super::{MeshSettings, Tallies};
use crate::desired::{Launch, Templates, desired};
use crate::facts::Facts;
use crate::paths::StateDir;
use crate::ratls::{self, fuzz::only_app_id};
use crate::spec::Spec;

/// `data` is first the header, then a certificate which is put into one as nginx does it. Who is let in is who the one
/// certificate says; three readers agree on that.
pub fn auth_header(data: &[u8]) {
    if let Some(app) = ask(data) {
        let pem = unescape(data).expect("what was accepted can be read");
        let blocks = pem::parse_many(&pem).expect("another reader takes it for PEM, too");
        let [block] = blocks.as_slice() else {
            panic!("{} blocks", blocks.len());
        };
        assert_eq!(block.tag(), "CERTIFICATE");
        assert_eq!(block.headers().iter().count(), 0);
        assert_eq!(only_app_id(block.contents()), Some(app.clone()));
        assert_eq!(ask(&as_nginx_writes(block.contents())), Some(app));
    }

    ratls::fuzz::certificate(data);
    let now = SystemTime::now();
    let expected = ratls::leaf(&CertificateDer::from(data))
        .ok()
        .filter(|(_, validity)| validity.contains(&now))
        .map(|(app, _)| app.to_string());
    let header = as_nginx_writes(data);
    if header.len() <= 64 * 1024 {
        assert_eq!(ask(&header), expected);
    }
}

/// The app that is let in with this header.
fn ask(header: &[u8]) -> Option<String> {
    let header = HeaderValue::from_bytes(header).ok()?;
    let request = Request::get("/auth")
        .header("x-client-verify", "SUCCESS")
        .header("x-client-cert", header)
        .body(())
        .unwrap();
    let mut auth = Auth::new(Pen::new(&TALLIES, 0));
    let answer = auth.answer(&request, &SETTINGS);
    let app = answer
        .headers()
        .get("x-dstack-app-id")
        .map(|app| app.to_str().unwrap().to_owned());
    match answer.status() {
        StatusCode::OK => assert!(app.is_some()),
        status => assert!(status == StatusCode::UNAUTHORIZED && app.is_none(), "{status}"),
    }
    // A refusal goes into a log and to whoever asked: it is short, whatever was sent.
    assert!(answer.body().size_hint().upper() < Some(1500));
    // Asked again it is answered from memory.
    let again = auth.answer(&request, &SETTINGS);
    assert_eq!(again.status(), answer.status());
    assert_eq!(
        again.headers().get("x-dstack-app-id"),
        answer.headers().get("x-dstack-app-id")
    );
    // Nobody is let in whom nginx has not verified.
    let mut unverified = request;
    unverified
        .headers_mut()
        .insert("x-client-verify", HeaderValue::from_static("FAILED:expired"));
    assert_eq!(
        auth.answer(&unverified, &SETTINGS).status(),
        StatusCode::UNAUTHORIZED
    );
    app
}

/// `$ssl_client_escaped_cert`: PEM with lines of 64, everything escaped but what needs none in a URI.
fn as_nginx_writes(der: &[u8]) -> Vec<u8> {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    let pem = pem::Pem::new("CERTIFICATE", der);
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let pem = pem::encode_config(&pem, config);
    percent_encode(pem.as_bytes(), ESCAPED).to_string().into_bytes()
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = text.iter();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [*bytes.next()?, *bytes.next()?];
                *hex::decode(digits).ok()?.first()?
            }
            other => *other,
        });
    }
    Some(out)
}

static TALLIES: LazyLock<Arc<Tallies>> = LazyLock::new(|| Arc::new(Tallies::new(1)));

/// Those of a machine where nothing is configured.
static SETTINGS: LazyLock<MeshSettings> = LazyLock::new(|| {
    let launch = Launch {
        exe: "/dstack-vpc".into(),
        config: None,
    };
    let (spec, facts, state) = (Spec::default(), Facts::default(), StateDir::new("/s"));
    let desired = desired(&spec, &facts, &state, &launch, &Templates::builtin()).unwrap();
    desired.listeners.mesh
});
