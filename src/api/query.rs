//! Parameters, read strictly: what is given has to be right, and given once.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use ipnet::Ipv4Net;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use crate::names::{DnsName, NotA};
use crate::spec::parse_duration;

/// The query of a request. Parameters that nobody asks for are ignored.
pub(super) struct Query(String);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::new(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The value of a parameter; one that is empty counts as not given.
    pub(super) fn get<T: FromStr<Err = NotA>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.read(name, T::from_str)
    }

    /// The same, for what is not a type of its own.
    pub(super) fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, NotA>,
    ) -> Result<Option<T>, ApiError> {
        let mut found = None;
        for pair in self.0.split('&') {
            let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
            // A name that cannot be read is none of ours.
            if decode(raw_name).is_ok_and(|given| given == name) && found.replace(raw_value).is_some() {
                return Err(ApiError::Repeated(name.to_owned()));
            }
        }
        let Some(raw) = found.filter(|raw| !raw.is_empty()) else {
            return Ok(None);
        };
        let value = decode(raw).map_err(|why| ApiError::invalid(name, raw, why))?;
        parse(&value)
            .map(Some)
            .map_err(|why| ApiError::invalid(name, &value, why))
    }
}

/// As in a form: `+` is a space.
fn decode(raw: &str) -> Result<String, NotA> {
    let not_encoded = || NotA::new("percent-encoded UTF-8");
    let well_escaped = raw.split('%').skip(1).all(|rest| {
        rest.as_bytes()
            .iter()
            .take(2)
            .filter(|b| b.is_ascii_hexdigit())
            .count()
            == 2
    });
    if !well_escaped {
        return Err(not_encoded());
    }
    let raw = raw.replace('+', " ");
    let text = percent_decode_str(&raw)
        .decode_utf8()
        .map_err(|_| not_encoded())?;
    Ok(text.into_owned())
}

/// An address of the VPN.
pub(super) fn address(prefix: Ipv4Net) -> impl FnOnce(&str) -> Result<Ipv4Addr, NotA> {
    move |text| {
        text.parse()
            .ok()
            .filter(|ip| prefix.contains(ip))
            .ok_or_else(|| NotA::new(format!("an IPv4 address within {prefix}")))
    }
}

/// A host name; the dot that ends a complete one is dropped.
pub(super) fn hostname(text: &str) -> Result<DnsName, NotA> {
    text.strip_suffix('.').unwrap_or(text).parse()
}

/// Seconds (`30`), or with a unit (`5m`).
pub(super) fn duration(text: &str) -> Result<Duration, NotA> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let with_unit = format!("{text}{}", if is_number { "s" } else { "" });
    parse_duration(&with_unit).map_err(|_| {
        NotA::new("a time, such as 30, \"30s\" or \"5m\", longer than nothing and at most 3650d")
    })
}

/// A whole number.
pub(super) fn number(text: &str) -> Result<u64, NotA> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| NotA::new("a whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::NodeId;

    fn id(query: &str) -> Result<Option<NodeId>, String> {
        Query(query.to_owned())
            .get("uuid")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_parameter_is_absent_right_or_explained() {
        for absent in ["", "uuid", "uuid=", "UUID=a", "x=1&y=%zz", "&&", "u%75id="] {
            assert_eq!(id(absent), Ok(None), "{absent:?}");
        }
        for right in ["uuid=a-1", "x=1&uuid=a-1&x=2", "u%75id=%61-1"] {
            assert_eq!(id(right).unwrap().unwrap().as_str(), "a-1", "{right:?}");
        }
        for wrong in ["uuid=a&uuid=a", "uuid=&uuid=a", "uuid=a&uui%64=b"] {
            assert_eq!(
                id(wrong),
                Err("uuid is given more than once; give it once".into())
            );
        }
        for wrong in [
            "uuid=%",
            "uuid=%4",
            "uuid=%zz",
            "uuid=a%ff",
            "uuid=%+1",
            "uuid=%é",
        ] {
            let words = id(wrong).unwrap_err();
            assert!(
                words.ends_with("expected percent-encoded UTF-8"),
                "{wrong}: {words}"
            );
        }
        let words = id(&format!("uuid={}", "+".repeat(5000))).unwrap_err();
        assert!(words.len() < 250 && words.contains('…'), "{words}");
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["0", "-1", "1.5", "5 m", "m", "99999999999999999999"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(number("+5").is_err() && number("").is_err() && number("5") == Ok(5));
    }
}
