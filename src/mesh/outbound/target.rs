//! Which app a request is for: the `x-dstack-target-*` headers, parsed once and strictly.

use hyper::header::{HeaderMap, HeaderValue};
use rustls_pki_types::ServerName;

use crate::mesh::hop::{Endpoint, Failure};
use crate::names::{AppId, Host, HostPort, InstanceId, parse_port};
use crate::spec::Gateway;

const DEFAULT_PORT: u16 = 443;

/// One app, or one instance of it, and the port there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::mesh) struct Target {
    /// Whose certificate it must be.
    pub(in crate::mesh) app: AppId,
    /// Only this instance; `None`: whichever the gateway picks.
    pub(in crate::mesh) instance: Option<InstanceId>,
    pub(in crate::mesh) port: u16,
    /// False: the gateway ends the TLS connection and nobody's identity is checked.
    pub(super) end_to_end: bool,
}

impl Target {
    /// Reached end to end, as all that a forward leads to.
    pub(in crate::mesh) fn proven(app: AppId, instance: Option<InstanceId>, port: u16) -> Self {
        Self {
            app,
            instance,
            port,
            end_to_end: true,
        }
    }

    /// `None`: the request is not for another app.
    pub(in crate::mesh) fn of(headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let (mut app, mut instance, mut port, mut use_tls) = (None, None, None, None);
        for (name, value) in headers {
            let (place, repeated) = match name.as_str() {
                "x-dstack-target-app" => (&mut app, "x-dstack-target-app is repeated"),
                "x-dstack-target-instance" => (&mut instance, "x-dstack-target-instance is repeated"),
                "x-dstack-target-port" => (&mut port, "x-dstack-target-port is repeated"),
                "x-dstack-target-use-tls" => (&mut use_tls, "x-dstack-target-use-tls is repeated"),
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(Failure::BadTarget(repeated));
            }
        }
        let Some(app) = app else {
            return match instance.or(port).or(use_tls) {
                None => Ok(None),
                Some(_) => Err(Failure::BadTarget(
                    "x-dstack-target-app is missing beside the other x-dstack-target headers",
                )),
            };
        };
        Ok(Some(Self {
            app: text(app)
                .parse()
                .ok()
                .ok_or(Failure::BadTarget("x-dstack-target-app must be 40 hex digits"))?,
            instance: instance
                .map(|instance| text(instance).parse())
                .transpose()
                .map_err(|_| Failure::BadTarget("x-dstack-target-instance must be 40 hex digits"))?,
            port: port
                .map_or(Ok(DEFAULT_PORT), |port| parse_port(text(port)))
                .map_err(|_| Failure::BadTarget("x-dstack-target-port must be a port from 1 to 65535"))?,
            end_to_end: match use_tls.map(text) {
                None => true,
                Some(text) if text == "1" || text.eq_ignore_ascii_case("true") => true,
                Some(text) if text == "0" || text.eq_ignore_ascii_case("false") => false,
                Some(_) => {
                    return Err(Failure::BadTarget(
                        "x-dstack-target-use-tls must be true or false",
                    ));
                }
            },
        }))
    }

    /// Where the target is reached, and by which name.
    pub(super) fn endpoint(&self, gateway: &Gateway) -> Result<Endpoint, Failure> {
        let at = match gateway {
            Gateway::Fixed(at) => at.clone(),
            Gateway::Domain { domain, port } => {
                let id = self
                    .instance
                    .map_or_else(|| self.app.to_string(), |i| i.to_string());
                let suffix = if self.end_to_end { "s" } else { "" };
                let name = format!("{id}-{}{suffix}.{domain}", self.port);
                HostPort {
                    host: Host::Name(name.parse().map_err(|_| Failure::GatewayUnknown)?),
                    port: *port,
                }
            }
        };
        let name = match &at.host {
            Host::Ip(ip) => ServerName::from(*ip),
            Host::Name(name) => {
                ServerName::try_from(name.as_str().to_owned()).map_err(|_| Failure::GatewayUnknown)?
            }
        };
        Ok(Endpoint {
            at,
            name,
            proves: self.end_to_end,
        })
    }
}

/// What is not plain text matches nothing that is looked for here.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    const APP: &str = "x-dstack-target-app";
    const INSTANCE: &str = "x-dstack-target-instance";
    const PORT: &str = "x-dstack-target-port";
    const USE_TLS: &str = "x-dstack-target-use-tls";
    const ID: &str = "AA00000000000000000000000000000000000001";

    fn parse(headers: &[(&str, &str)]) -> Result<Option<Target>, Failure> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Target::of(&map)
    }

    fn url(headers: &[(&str, &str)], gateway: &Gateway) -> String {
        let endpoint = parse(headers).unwrap().unwrap().endpoint(gateway).unwrap();
        format!("{} as {}", endpoint.at, endpoint.name.to_str())
    }

    #[test]
    fn targets_become_gateway_names() {
        let gateway = Gateway::Domain {
            domain: "apps.example.com".parse().unwrap(),
            port: 9443,
        };
        let instance = "Bb00000000000000000000000000000000000002";
        for (headers, expected) in [
            (&[(APP, ID)][..], "aa00000000000000000000000000000000000001-443s"),
            (
                &[(APP, ID), (PORT, "8080")],
                "aa00000000000000000000000000000000000001-8080s",
            ),
            (
                &[(APP, ID), (USE_TLS, "FALSE")],
                "aa00000000000000000000000000000000000001-443",
            ),
            (
                &[(APP, ID), (USE_TLS, "1")],
                "aa00000000000000000000000000000000000001-443s",
            ),
            (
                &[(APP, ID), (INSTANCE, instance)],
                "bb00000000000000000000000000000000000002-443s",
            ),
        ] {
            let name = format!("{expected}.apps.example.com");
            assert_eq!(url(headers, &gateway), format!("{name}:9443 as {name}"));
        }
        let fixed = Gateway::Fixed("gw.local:8443".parse().unwrap());
        assert_eq!(url(&[(APP, ID)], &fixed), "gw.local:8443 as gw.local");
    }

    #[test]
    fn anything_else_is_no_target() {
        let id = |s: &'static str| (APP, s);
        for headers in [
            &[id("127.0.0.1:18443/injected?")][..],
            &[id("")],
            &[id("aa0000000000000000000000000000000000001")],
            &[id("aa000000000000000000000000000000000000011")],
            &[id("gg00000000000000000000000000000000000001")],
            &[id("0xaa000000000000000000000000000000000001")],
            &[id("aa00000000000000000000000000000000000001 ")],
            &[id("aa0000000000000000000000000000000000000\u{e9}")],
            &[id(ID), id(ID)],
            &[id(ID), (PORT, "0")],
            &[id(ID), (PORT, "65536")],
            &[id(ID), (PORT, "+443")],
            &[id(ID), (PORT, "")],
            &[id(ID), (PORT, "443s.evil.example")],
            &[id(ID), (PORT, "443"), (PORT, "443")],
            &[id(ID), (INSTANCE, "../x")],
            &[id(ID), (INSTANCE, "")],
            &[id(ID), (USE_TLS, "no")],
            &[id(ID), (USE_TLS, "")],
            &[(PORT, "443")],
            &[(INSTANCE, ID)],
        ] {
            let error = parse(headers).expect_err(&format!("{headers:?}"));
            assert_eq!(error.code().name(), "bad_target", "{headers:?}");
        }
        assert_eq!(parse(&[("x-other", "1")]).unwrap(), None);
    }
}
