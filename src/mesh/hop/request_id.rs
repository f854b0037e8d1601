//! One name for a request at every hop: `x-request-id`.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

pub(in crate::mesh) const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// In bytes.
const LONGEST: usize = 128;

/// The id the caller gave, if it is one that can stand in a log and in JSON; else a new one.
pub(in crate::mesh) fn of(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(NAME).iter();
    if let (Some(id), None) = (given.next(), given.next())
        && is_sane(id.as_bytes())
    {
        return id.clone();
    }
    new()
}

/// nginx takes the same: see `vpc_request_id` in its template.
fn is_sane(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:/+=@-".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(allowed)
}

/// 128 random bits in hex, like nginx's `$request_id`. Nobody is to guess anything by them, so they need not be secret.
fn new() -> HeaderValue {
    let mut text = [0; 32];
    let id = fastrand::u128(..).to_ne_bytes();
    match hex::encode_to_slice(id, &mut text) {
        Ok(()) => HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)),
        Err(_) => HeaderValue::from_bytes(b"-"),
    }
    .unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[&[u8]]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value).unwrap());
        }
        of(&headers)
    }

    #[test]
    fn a_sane_id_is_taken_over_and_any_other_replaced() {
        let longest = [b'a'; LONGEST];
        for sane in [&b"1"[..], b"2f-4e_", b"a.b:c/d+e=@", &longest] {
            let sane = HeaderValue::from_bytes(sane).unwrap();
            assert_eq!(given(&[sane.as_bytes()]), sane);
        }
        let too_long = [b'a'; LONGEST + 1];
        let repeated: &[&[u8]] = &[b"a", b"a"];
        let single = [&b""[..], b"a b", b"a\"b", b"\xe9", &too_long];
        let single = single.each_ref().map(std::slice::from_ref);
        for bad in single.into_iter().chain([&[][..], repeated]) {
            let id = given(bad);
            assert!(
                id.len() == 32 && id.as_bytes().iter().all(u8::is_ascii_hexdigit),
                "{id:?}"
            );
            assert!(!bad.contains(&id.as_bytes()));
        }
    }
}
