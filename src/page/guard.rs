//! Who may look, and what a browser may do with the answer.

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{StatusCode, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Page, html};
use crate::names::{DnsName, Host};

const OTHER_NAME: &str = "This page is served under IP addresses, localhost and the names in status.names: \
                          add the name there, or ask by the address.\n";

/// What every answer says; the policy is beside it.
const HEADERS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Stands before everything that is served here.
pub(super) async fn guard(State(page): State<Page>, request: Request, next: Next) -> Response {
    let mut response = match is_ours(request.headers(), &page.0.names.load()) {
        true => next.run(request).await,
        false => (StatusCode::MISDIRECTED_REQUEST, OTHER_NAME).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(html::policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// A page of somebody else's can let its own name lead to our address and then read what we answer (DNS rebinding). The
/// browser sends that name: so only such are answered that nobody else can let lead here.
fn is_ours(headers: &HeaderMap, names: &[DnsName]) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let host = host.to_str().ok().filter(|host| !host.contains('@'));
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    match host.and_then(|host| host.host().parse().ok()) {
        Some(Host::Ip(_)) => true,
        Some(Host::Name(name)) => name.as_str() == "localhost" || names.contains(&name),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_lead_here_are_answered() {
        let names = ["status.example.com".parse().unwrap()];
        let asks = |hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (header::HOST, host.parse().unwrap()));
            is_ours(&hosts.collect(), &names)
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:9180",
            "10.1.2.3:80",
            "[::1]:9180",
            "[::1]",
            "localhost:9180",
            "LOCALHOST",
            "status.example.com",
            "Status.Example.com:8443",
        ] {
            assert!(asks(&[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9180",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "a.status.example.com",
            "status.example.com.",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1:9180, evil.example",
            "127.0.0.1/evil",
        ] {
            assert!(!asks(&[host]), "{host}");
        }
        assert!(!asks(&[]));
        assert!(!asks(&["127.0.0.1", "127.0.0.1"]));
    }
}
