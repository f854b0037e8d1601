//! The vocabulary: values that cannot be wrong once they exist.
//!
//! Every type here is made by parsing and has no other constructor, so nothing behind this file
//! validates an app id or a host a second time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::Ipv4Net;

/// Why a text is not the value it should be: what was expected, in words for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct NotA {
    /// What would have been accepted, e.g. `40 hex digits`.
    pub expected: String,
}

impl NotA {
    /// Says what was expected.
    pub fn new(expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
        }
    }
}

/// What Tailscale clients take for their own without being told: RFC 6598.
pub const SHARED_SPACE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// The Host under which peers reach the VPC API of a server, and the backend that the auth service knows it as.
pub const API_HOST: &str = "vpc-server";

/// A dstack app id: 20 bytes that attestation established, written as 40 hex digits.
///
/// Parsed in any case, always shown in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId([u8; 20]);

impl AppId {
    /// The raw bytes as they stand in an RA-TLS certificate.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The raw bytes as they stand in an RA-TLS certificate.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        let mut bytes = [0; 20];
        hex::decode_to_slice(s, &mut bytes).map_err(|_| NotA::new("40 hex digits (an app id)"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppId({self})")
    }
}

/// A dstack instance id: 20 bytes like an app id, naming one CVM of an app.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(AppId);

impl FromStr for InstanceId {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        s.parse()
            .map(InstanceId)
            .map_err(|_: NotA| NotA::new("40 hex digits (an instance id)"))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

/// A DNS name in lower case: labels of letters, digits and inner hyphens, at most 253 characters.
///
/// Underscores are refused: what passes here may be written into any of the rendered formats.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DnsName(String);

impl DnsName {
    /// [`API_HOST`]
    pub fn api() -> Self {
        Self(API_HOST.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when `self` is `other` or lies below it.
    pub fn is_within(&self, other: &DnsName) -> bool {
        self.0 == other.0
            || self
                .0
                .strip_suffix(other.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for DnsName {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if s.len() > 253 || !s.split('.').all(label_ok) {
            return Err(NotA::new(
                "a DNS name (letters, digits and hyphens, separated by dots)",
            ));
        }
        Ok(Self(s.to_ascii_lowercase()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host to connect to: an IP address or a DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name to resolve.
    Name(DnsName),
}

impl FromStr for Host {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
        if let Ok(ip) = bare.parse() {
            return Ok(Host::Ip(ip));
        }
        // `999.1.1.1` is a valid row of labels, but nobody means it as a name.
        let all_numeric = s
            .rsplit('.')
            .next()
            .is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()));
        match s.parse() {
            Ok(name) if !all_numeric => Ok(Host::Name(name)),
            _ => Err(NotA::new("an IP address or a DNS name")),
        }
    }
}

impl fmt::Display for Host {
    /// IPv6 addresses come in brackets, ready to take a port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Ip(ip) => ip.fmt(f),
            Host::Name(name) => name.fmt(f),
        }
    }
}

/// `host:port`, the port being 1 to 65535.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    /// Where.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = NotA;

    fn from_str(s: &str) -> Result<Self, NotA> {
        let not_a = || NotA::new("host:port, such as 127.0.0.1:8080, [::1]:8080 or db.local:8080");
        let (host, port) = s.rsplit_once(':').ok_or_else(not_a)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(not_a());
        }
        Ok(Self {
            host: host.parse().map_err(|_| not_a())?,
            port: parse_port(port).map_err(|_| not_a())?,
        })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: Host::Ip(addr.ip()),
            port: addr.port(),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A port from 1 to 65535, digits only (`str::parse` would take `+80`).
pub fn parse_port(s: &str) -> Result<u16, NotA> {
    let digits = (1..=5).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    match s.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(NotA::new("a port from 1 to 65535")),
    }
}

/// A node's host name in the VPN: one DNS label in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeName(Arc<str>);

/// A backend's name: one DNS label; it names the upstream in nginx and the backend in errors.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendName(Arc<str>);

impl BackendName {
    /// [`API_HOST`]
    pub fn api() -> Self {
        Self(API_HOST.into())
    }
}

/// A node type for discovery, such as `mongodb`: letters, digits, `-`, `_`, `.`, at most 63.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeType(Arc<str>);

/// What a node calls itself in the registry, its instance id as a rule: letters, digits, `-`, `_`, `.`, at most 64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(Arc<str>);

impl From<InstanceId> for NodeId {
    fn from(id: InstanceId) -> Self {
        Self(id.to_string().into())
    }
}

impl NodeId {
    /// One that nobody else has, in the form of an instance id.
    pub fn random() -> Self {
        Self(hex::encode(std::array::from_fn::<u8, 20, _>(|_| fastrand::u8(..))).into())
    }
}

/// A network device: letters, digits, `-`, `_`, `.`, at most 15, as the kernel allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceName(Arc<str>);

macro_rules! text {
    ($($name:ident: $parse:expr;)*) => {$(
        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotA;

            fn from_str(s: &str) -> Result<Self, NotA> {
                let parse: fn(&str) -> Result<String, NotA> = $parse;
                parse(s).map(|text| Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text! {
    NodeName: label;
    BackendName: label;
    NodeType: |s| word(s, 63)
        .ok_or_else(|| NotA::new("a node type (letters, digits, '-', '_' and '.', at most 63)"));
    NodeId: |s| word(s, 64)
        .ok_or_else(|| NotA::new("an instance id (letters, digits, '-', '_' and '.', at most 64)"));
    DeviceName: |s| word(s, 15)
        .ok_or_else(|| NotA::new("the name of a network device (letters, digits, '-', '_' and '.', at most 15)"));
}

/// Letters, digits, `-`, `_` and `.`, the first one a letter or digit.
fn word(s: &str, longest: usize) -> Option<String> {
    let ok = (1..=longest).contains(&s.len())
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    ok.then(|| s.to_owned())
}

/// Read and written as text.
macro_rules! serde_as_text {
    ($($name:ident)*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text! { AppId InstanceId DnsName NodeName NodeType NodeId }

fn label(s: &str) -> Result<String, NotA> {
    match s.parse::<DnsName>() {
        Ok(name) if !s.contains('.') => Ok(name.0),
        _ => Err(NotA::new(
            "a DNS label (letters, digits and inner hyphens, at most 63)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids_are_40_hex_digits_of_any_case() {
        let id: AppId = "AA00000000000000000000000000000000000001".parse().unwrap();
        assert_eq!(id.to_string(), "aa00000000000000000000000000000000000001");
        for bad in [
            "",
            "aa",
            "zz00000000000000000000000000000000000001",
            " aa00000000000000000000000000000000000001",
        ] {
            assert!(bad.parse::<AppId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_api_has_a_name_as_any_other() {
        assert_eq!(API_HOST.parse(), Ok(DnsName::api()));
        assert_eq!(API_HOST.parse(), Ok(BackendName::api()));
    }

    #[test]
    fn hosts_and_ports_carry_nothing_else() {
        for good in ["127.0.0.1:1", "[::1]:65535", "db-1.example.com:27017"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "a:0",
            "a:65536",
            "a:+1",
            "a;b:1",
            "::1:80",
            "a b:1",
            "a",
            ":1",
            "999.0.0.1:1",
            "a\n:1",
            "u@h:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn within_compares_whole_labels() {
        let name = |s: &str| s.parse::<DnsName>().unwrap();
        assert!(name("a.example.com").is_within(&name("example.com")));
        assert!(name("Example.com").is_within(&name("example.com")));
        assert!(!name("badexample.com").is_within(&name("example.com")));
    }
}
