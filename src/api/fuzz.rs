//! Parameters of the VPC API.

use ipnet::Ipv4Net;
use url::form_urlencoded;

use super::query::{self, Query};
use crate::names::{NodeId, NodeName, NodeType};

/// `data` is a query. A value that is taken is the only one of its name, and what another reader of forms finds.
pub fn api_parameters(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let prefix: Ipv4Net = "100.128.0.0/10".parse().unwrap();
    let query = Query::new(text);
    let taken = [
        same(&query, text, "uuid", |it| {
            it.parse::<NodeId>().map(|it| it.to_string())
        }),
        same(&query, text, "name", |it| {
            it.parse::<NodeName>().map(|it| it.to_string())
        }),
        same(&query, text, "type", |it| {
            it.parse::<NodeType>().map(|it| it.to_string())
        }),
        same(&query, text, "ip", |it| {
            query::address(prefix)(it).map(|it| it.to_string())
        }),
        same(&query, text, "host", |it| {
            query::hostname(it).map(|it| it.to_string())
        }),
        same(&query, text, "n", |it| query::number(it).map(|it| it.to_string())),
    ];
    for value in taken.into_iter().flatten() {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        assert!(
            !value.is_empty() && value.len() <= 253 && value.bytes().all(plain),
            "{value:?}"
        );
    }
    if let Ok(Some(time)) = query.read("for", query::duration) {
        assert!(!time.is_zero() && time.as_secs() <= 3650 * 86_400);
    }
}

/// The value in its one way of writing, compared with what was given.
fn same(
    query: &Query,
    text: &str,
    name: &str,
    parse: impl Fn(&str) -> Result<String, crate::names::NotA>,
) -> Option<String> {
    let given: Vec<String> = form_urlencoded::parse(text.as_bytes())
        .filter(|(given, _)| given == name)
        .map(|(_, value)| value.into_owned())
        .collect();
    match query.read(name, parse) {
        Err(error) => {
            assert!(!given.is_empty());
            let words = error.to_string();
            assert!(
                words.len() < 1200 && !words.contains(char::is_control),
                "{words:?}"
            );
            None
        }
        Ok(None) => {
            assert!(given.iter().all(String::is_empty), "{given:?}");
            None
        }
        Ok(Some(value)) => {
            let [given] = given.as_slice() else {
                panic!("{name} was given {} times", given.len());
            };
            // Names are in lower case and without the last dot, numbers without zeros.
            let given = given.to_ascii_lowercase();
            let given = if name == "host" {
                given.strip_suffix('.').unwrap_or(&given)
            } else {
                &given
            };
            let given = if name == "n" {
                given.trim_start_matches('0')
            } else {
                given
            };
            assert!(
                value.to_ascii_lowercase() == given || (value == "0" && given.is_empty()),
                "{value} {given}"
            );
            Some(value)
        }
    }
}
