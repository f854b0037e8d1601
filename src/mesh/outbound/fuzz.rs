//! The headers of a request to the outbound proxy.

use std::net::{IpAddr, Ipv4Addr};

use hyper::Version;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::target::Target;
use crate::mesh::hop::headers;
use crate::names::{DnsName, Host};
use crate::spec::Gateway;

/// `data` is the head of a request without its first line. Whoever is named by it is the only one who is asked for, and
/// nothing that is meant for this hop, or that only the receiving side may say, goes on.
pub fn target_headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().map(<[u8]>::trim_ascii);
        if let (Some(name), Some(Ok(value))) = (name, value.map(HeaderValue::from_bytes)) {
            headers.append(name, value);
        }
    }
    names_one_target(&headers);
    passes_nothing_of_this_hop(&headers);
}

fn names_one_target(headers: &HeaderMap) {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(format!("x-dstack-target-{name}")).iter();
        values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase())
            .collect()
    };
    let (app, instance, port, tls) = (all("app"), all("instance"), all("port"), all("use-tls"));
    match Target::of(headers) {
        Ok(None) => assert!([app, instance, port, tls].iter().all(Vec::is_empty)),
        Err(failure) => assert_eq!(failure.code().name(), "bad_target"),
        Ok(Some(target)) => {
            assert_eq!(app, [target.app.to_string()]);
            let said: Vec<_> = target.instance.iter().map(ToString::to_string).collect();
            assert_eq!(instance, said);
            let is_port = |text: &String| text.trim_start_matches('0') == target.port.to_string();
            assert!(port.len() <= 1 && port.iter().all(is_port), "{port:?}");
            assert!(!port.is_empty() || target.port == 443);
            let words = if target.end_to_end {
                ["true", "1"]
            } else {
                ["false", "0"]
            };
            assert!(tls.len() <= 1 && tls.iter().all(|word| words.contains(&word.as_str())));
            assert!(!tls.is_empty() || target.end_to_end);
            leads_there(&target);
        }
    }
}

/// The gateway is asked for one name below its own, and nobody else is asked.
fn leads_there(target: &Target) {
    let domain: DnsName = "apps.example.com".parse().unwrap();
    let endpoint = target
        .endpoint(&Gateway::Domain {
            domain: domain.clone(),
            port: 8443,
        })
        .unwrap();
    let id = target
        .instance
        .map_or(target.app.to_string(), |id| id.to_string());
    let suffix = if target.end_to_end { "s" } else { "" };
    let name = format!("{id}-{}{suffix}.{domain}", target.port);
    assert_eq!(endpoint.at.to_string(), format!("{name}:8443"));
    assert_eq!(endpoint.name.to_str(), name);

    let fixed = Gateway::Fixed("127.0.0.1:8443".parse().unwrap());
    let at = target.endpoint(&fixed).unwrap().at;
    assert_eq!(at.host, Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)));
}

fn passes_nothing_of_this_hop(given: &HeaderMap) {
    assert!(headers::check_framing(given, 0).is_err() || given.is_empty());
    if headers::check_framing(given, 100).is_ok() {
        assert!(given.len() <= 100);
        let lengths = given.get_all("content-length").iter().count();
        let codings = given.get_all("transfer-encoding").iter().count();
        assert!(lengths + codings <= 1 && given.get_all("host").iter().count() <= 1);
    }
    if let Some(protocol) = headers::upgrade(given, Version::HTTP_11) {
        let text = String::from_utf8_lossy(protocol.as_bytes()).to_ascii_lowercase();
        let name = |protocol: &str| protocol.split('/').next().unwrap_or("").trim() == "h2c";
        assert!(!text.split(',').any(name), "{text}");
        assert!(given.contains_key("connection"));
    }
    assert_eq!(headers::upgrade(given, Version::HTTP_10), None);

    let mut passed = given.clone();
    headers::strip_request(&mut passed);
    let named: Vec<String> = given
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase())
        .collect();
    for (name, value) in &passed {
        let name = name.as_str();
        assert!(
            given.get_all(name).iter().any(|it| it == value)
                || (name, value.as_bytes()) == ("te", b"trailers")
        );
        let as_nginx_may_read_it = name.replace('_', "-");
        assert!(!as_nginx_may_read_it.starts_with("x-dstack-target-"), "{name}");
        assert_ne!(as_nginx_may_read_it, "x-dstack-app-id");
        let of_this_hop = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "transfer-encoding",
            "upgrade",
        ];
        assert!(!of_this_hop.contains(&name), "{name}");
        assert!(
            !named.iter().any(|it| it == name) || ["te", "host", "content-length"].contains(&name),
            "{name} was named by Connection"
        );
    }
    for name in ["host", "content-length"] {
        assert_eq!(
            given.get_all(name).iter().count(),
            passed.get_all(name).iter().count()
        );
    }
    let mut again = passed.clone();
    headers::strip_request(&mut again);
    // `TE: trailers` goes on, and has to be said again by whoever passes it on.
    assert_eq!(again, passed);
}
