//! What of a message belongs to one hop only (RFC 9110 §7.6.1), and what is ours.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Version};

use super::Failure;
use crate::mesh::worker::LAST;

/// The protocol a client asks to change to, when it asks in the way of RFC 9110 §7.8.
///
/// Another version of HTTP is not one, nor is TLS: the requests in such a tunnel would pass nobody's checks.
pub(in crate::mesh) fn upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asked =
        version == Version::HTTP_11 && names(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    let is_http = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or("");
        ["http", "h2c", "h2", "tls"]
            .iter()
            .any(|http| name.eq_ignore_ascii_case(http))
    };
    (asked && !tokens(protocol).any(is_http)).then(|| protocol.clone())
}

/// Whether it is gRPC over HTTP/2, whose clients read no other kind of answer (grpc-web is plain HTTP).
pub(in crate::mesh) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], |kind| kind.as_bytes());
    matches!(
        kind.strip_prefix(b"application/grpc"),
        Some([] | [b'+' | b';', ..])
    )
}

/// Refuses requests that two parsers could read as two different requests. (Of a length beside a coding hyper leaves only
/// the coding, as RFC 9112 §6.3 has it.)
pub(in crate::mesh) fn check_framing(headers: &HeaderMap, most: u16) -> Result<(), Failure> {
    // HTTP/2 counts bytes alone.
    if headers.len() > most.into() {
        return Err(Failure::TooManyHeaders);
    }
    let (mut host, mut length, mut coding) = (None, None, None);
    for (name, value) in headers {
        if *name == header::HOST && host.replace(value).is_some() {
            return Err(Failure::BadRequest("the Host header is repeated"));
        }
        if *name == header::CONTENT_LENGTH && length.replace(value).is_some() {
            return Err(Failure::BadRequest("the Content-Length header is repeated"));
        }
        if *name == header::TRANSFER_ENCODING
            && (coding.replace(value).is_some() || !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Err(Failure::BadRequest("the only Transfer-Encoding taken is chunked"));
        }
    }
    if length.and(coding).is_some() {
        return Err(Failure::BadRequest(
            "both Content-Length and Transfer-Encoding are set",
        ));
    }
    Ok(())
}

pub(in crate::mesh) fn is_repeated(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

/// Takes out of a request what must not reach the next hop: the hop-by-hop headers, the target headers, and any
/// claim to an app id, which only the receiving side may make.
pub(in crate::mesh) fn strip_request(headers: &mut HeaderMap) {
    let is_te_trailers = |(name, te): (&HeaderName, &HeaderValue)| {
        *name == header::TE && tokens(te).any(|t| t.eq_ignore_ascii_case("trailers"))
    };
    let trailers = headers.iter().any(is_te_trailers);
    strip(headers, |name| is_hop_by_hop(name) || is_ours(name));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out what a backend could take for our word about the caller, or for another header: some servers read `_` as `-`.
pub(in crate::mesh) fn strip_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &HeaderName| {
        let name = name.as_str();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ["x-dstack-backend", "x-client-cert", "x-client-verify"].contains(&name) || !name.bytes().all(plain)
    };
    let claims: Vec<_> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Takes out of an answer what only servers like nginx were to read, and what only we say.
pub(in crate::mesh) fn strip_commands(headers: &mut HeaderMap) {
    let is_command = |name: &HeaderName| name.as_str().starts_with("x-accel-") || *name == LAST;
    let commands: Vec<_> = headers.keys().filter(|name| is_command(name)).cloned().collect();
    for name in commands {
        headers.remove(name);
    }
}

/// Takes out of trailers what no one may learn from a trailer (RFC 9110 §6.5.1): how long the message is, whom it is
/// for, who sends it, and how to read it.
pub(in crate::mesh) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_request(trailers);
    for name in [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::MAX_FORWARDS,
        header::TE,
        header::TRAILER,
    ] {
        trailers.remove(name);
    }
}

/// True when an OPTIONS or TRACE asks the hop it has just reached (RFC 9110 §7.6.2); else it may go one hop less.
pub(in crate::mesh) fn is_last_hop<B>(request: &mut Request<B>) -> bool {
    if ![Method::OPTIONS, Method::TRACE].contains(request.method()) {
        return false;
    }
    let headers = request.headers_mut();
    let left = headers
        .get(header::MAX_FORWARDS)
        .and_then(|left| left.to_str().ok());
    let Some(left) = left.and_then(|left| left.parse::<u32>().ok()) else {
        return false;
    };
    match left.checked_sub(1) {
        Some(left) => {
            headers.insert(header::MAX_FORWARDS, left.into());
            false
        }
        None => true,
    }
}

/// Whoever sends `TE` says that it is for the next hop (RFC 9110 §10.1.4).
pub(in crate::mesh) fn announce_te(headers: &mut HeaderMap) {
    if headers.contains_key(header::TE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Takes out of a message whatever belongs to the connection it came over.
pub(in crate::mesh) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// Takes out what `Connection` names.
fn strip_named(headers: &mut HeaderMap) {
    // Mostly it names nothing: these two are no headers, or stripped anyway.
    let is_plain = |name: &&str| ["close", "keep-alive"].contains(name);
    let named: Vec<HeaderName> = names(headers)
        .filter(|name| !is_plain(name))
        .filter_map(|name| name.parse().ok())
        .filter(|name| !is_framing(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Takes out what is unwanted, and what `Connection` names. One look at each header that is there costs less than a search
/// for each that could be.
fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let unwanted: Vec<_> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    if unwanted.contains(&header::CONNECTION) {
        strip_named(headers);
    }
    for name in unwanted {
        headers.remove(name);
    }
}

/// Marks a message as the one that changes the protocol.
pub(in crate::mesh) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.remove(header::TE);
    headers.insert(header::UPGRADE, protocol);
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        // `Close` is no header, so that nobody can take one for the option of `Connection` (RFC 9112 §9.6).
        "close"
            | "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// True for what only this hop may read or say, in any spelling: some servers take `_` for `-`.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let begins = |with: &[u8]| {
        name.len() >= with.len()
            && name.iter().zip(with).all(|(byte, expected)| match byte {
                b'_' => *expected == b'-',
                byte => byte == expected,
            })
    };
    begins(b"x-dstack-target-") || (name.len() == "x-dstack-app-id".len() && begins(b"x-dstack-app-id"))
}

/// A `Connection` header may not talk the next hop out of how long the message is or whom it is for.
fn is_framing(name: &HeaderName) -> bool {
    [header::CONTENT_LENGTH, header::HOST].contains(name)
}

/// The header names that `Connection` lists.
fn names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::CONNECTION).iter().flat_map(tokens)
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    // One that is no text hides none of the others.
    let tokens = value.as_bytes().split(|byte| *byte == b',');
    tokens.map(|token| str::from_utf8(token).unwrap_or("").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn what_belongs_to_one_hop_stays_there() {
        let mut headers = map(&[
            ("connection", "close, X-Secret, host, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic eA=="),
            ("x-dstack-target-app", "a"),
            ("x_dstack_target_port", "1"),
            ("x-dstack_app-id", "1"),
            ("x-dstack-app-id", "1"),
            ("host", "db.internal"),
            ("content-length", "3"),
            ("x-kept", "1"),
        ]);
        strip_request(&mut headers);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "content-length: 3",
                "host: db.internal",
                "te: trailers",
                "x-kept: 1"
            ]
        );
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let refused = |headers: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            check_framing(&map, 128).is_err()
        };
        assert!(refused(&[("host", "a"), ("host", "b")]));
        assert!(refused(&[("content-length", "1"), ("content-length", "1")]));
        assert!(refused(&[
            ("content-length", "1"),
            ("transfer-encoding", "chunked")
        ]));
        assert!(refused(&[("transfer-encoding", "gzip, chunked")]));
        assert!(refused(&[
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked")
        ]));
        assert!(!refused(&[("transfer-encoding", "Chunked")]));
        assert!(!refused(&[("content-length", "1")]));
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_http_1_1() {
        let asked = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            upgrade(&asked, Version::HTTP_11),
            Some(HeaderValue::from_static("websocket"))
        );
        assert_eq!(upgrade(&asked, Version::HTTP_10), None);
        assert_eq!(upgrade(&map(&[("upgrade", "websocket")]), Version::HTTP_11), None);
        for http in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "http", "TLS/1.0"] {
            let asked = map(&[("connection", "upgrade"), ("upgrade", http)]);
            assert_eq!(upgrade(&asked, Version::HTTP_11), None, "{http}");
        }
    }
}
