//! What the built-in front is to serve, and to whom a request goes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyper::Uri;
use hyper::header::{HOST, HeaderMap};

use crate::names::{BackendName, DnsName};
use crate::spec::Upstream;

/// Everything the built-in front needs besides what the other listeners need.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontSettings {
    /// For local apps.
    pub http_listen: SocketAddr,
    /// For peers; `None`: this machine has no certificate yet.
    pub https_listen: Option<SocketAddr>,
    pub routes: Routes,
    /// The folder of the files below `/vpc/0/`.
    pub files: PathBuf,
    /// Names this state to whoever looks whether it is live.
    pub tag: String,
}

/// Which Host leads to which backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routes {
    /// In lower case, as every [`DnsName`] is.
    named: BTreeMap<String, Route>,
    /// Every other Host.
    others: Option<Route>,
}

/// One backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub backend: BackendName,
    pub leads: Leads,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq)]
pub enum Leads {
    /// To one of these addresses.
    To(Upstream),
    /// To the VPC API of this process.
    ToApi,
}

impl Routes {
    /// `name`: the Host; `None`: every Host that no other route names.
    pub fn add(&mut self, name: Option<&DnsName>, route: Route) {
        match name {
            Some(name) => drop(self.named.insert(name.as_str().to_owned(), route)),
            None => self.others = Some(route),
        }
    }

    /// The route of a request. The authority of an absolute form counts, not the Host beside it (RFC 9112 §3.2.2).
    pub(super) fn of(&self, uri: &Uri, headers: &HeaderMap) -> Option<&Route> {
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = authority.or_else(|| headers.get(HOST).map(|host| host.as_bytes()));
        let named = match self.named.is_empty() {
            true => None,
            false => host.and_then(|host| self.named.get(name(host)?.as_str())),
        };
        named.or(self.others.as_ref())
    }
}

/// The name in a Host, as routes are named.
fn name(host: &[u8]) -> Option<String> {
    let host = str::from_utf8(host).ok()?;
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => host.split(':').next(),
    }?;
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str) -> Route {
        Route {
            backend: name.parse().unwrap(),
            leads: Leads::To(Upstream::new(vec!["127.0.0.1:1".parse().unwrap()]).unwrap()),
        }
    }

    #[test]
    fn a_host_leads_to_its_backend_however_it_is_written() {
        let mut routes = Routes::default();
        routes.add(Some(&"db.Internal".parse().unwrap()), route("db"));
        let of = |routes: &Routes, uri: &str, host: &str| {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            routes
                .of(&uri.parse().unwrap(), &headers)
                .map(|route| route.backend.to_string())
        };
        for host in [
            "db.internal",
            "DB.INTERNAL",
            "db.internal:443",
            "db.internal.",
            "db.internal.:1",
        ] {
            assert_eq!(of(&routes, "/", host).as_deref(), Some("db"), "{host}");
        }
        for host in [
            "",
            "x.db.internal",
            "db.internal.x",
            "db",
            "[::1]:443",
            "db.internal..",
            "\u{e9}",
        ] {
            assert_eq!(of(&routes, "/", host), None, "{host}");
        }
        assert_eq!(
            of(&routes, "https://db.internal/", "other").as_deref(),
            Some("db")
        );
        assert_eq!(of(&routes, "https://other/", "db.internal"), None);
        routes.add(None, route("rest"));
        assert_eq!(of(&routes, "/", "other").as_deref(), Some("rest"));
        assert_eq!(of(&routes, "/", "db.internal").as_deref(), Some("db"));
    }
}
