//! The addresses that this machine listens on: whether it can have them all, and who reaches them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Check;
use crate::names::{Host, HostPort};

/// Of a listener that is not wanted.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Check<'_> {
    /// Every address this role listens on, as far as it is known: where an entry of a list could not be read, the places of
    /// the others are not.
    pub(super) fn listening(&self) -> Vec<(Cow<'static, str>, SocketAddr)> {
        let mut all = self.spec.listeners();
        for list in ["backends", "forwards"] {
            if !self.known(&[list]) {
                all.retain(|(key, _)| !key.starts_with(list));
            }
        }
        all
    }

    pub(super) fn listeners(&mut self) {
        let all = self.listening();
        for (i, (key, addr)) in all.iter().enumerate() {
            for (other_key, other) in &all[..i] {
                if collide((key, *addr), (other_key, *other)) {
                    let message = format!("`{other_key}` and `{key}` take the same port {}", addr.port());
                    let shown = if self.is_set(key) {
                        (key, other_key, *other)
                    } else {
                        (other_key, key, *addr)
                    };
                    let (at, than, value) = shown;
                    let expected = format!("`{than}` is {value} ({})", self.place(than));
                    self.error(&[at, than], message, expected, "give one of them another port");
                }
            }
        }
        for (key, addr, risk) in [
            (
                "server.api_listen",
                self.spec.server.api_listen,
                "can pass for any app",
            ),
            (
                "mesh.client_listen",
                self.spec.mesh.client_listen,
                "can call other apps as this one",
            ),
            (
                "mesh.auth_listen",
                self.spec.mesh.auth_listen,
                "can try which callers each backend lets in",
            ),
            (
                "tailscale.proxy_listen",
                self.spec.tailscale.proxy_listen.unwrap_or(NOWHERE),
                "can call into the VPN as this node",
            ),
            (
                "metrics.listen",
                self.spec.metrics.listen.unwrap_or(NOWHERE),
                "learns which apps this one calls",
            ),
            (
                "status.listen",
                self.spec
                    .status
                    .listen
                    .filter(|_| self.spec.status.public)
                    .unwrap_or(NOWHERE),
                "sees how this machine is set up, which apps it calls, and its nodes",
            ),
        ] {
            if !addr.ip().is_loopback() && all.iter().any(|(listening, _)| *listening == key) {
                self.warn(
                    &[key],
                    format!("whoever reaches `{key}` {risk}"),
                    "others can reach this address",
                    "listen on 127.0.0.1",
                );
            }
        }
    }

    /// Who wants others to see the page says so twice.
    pub(super) fn status_page(&mut self) {
        let page = &self.spec.status;
        if let Some(addr) = page
            .listen
            .filter(|addr| !addr.ip().is_loopback() && !page.public)
        {
            self.error(
                &["status.listen", "status.public"],
                "the status page is for this machine alone",
                format!("others can reach {addr}, and `status.public` is false ({})", self.place("status.public")),
                "listen on 127.0.0.1; or add `public = true` in [status], if whoever reaches the address may see it",
            );
        }
    }
}

/// Two sockets that cannot be open at once. `[::]` takes IPv4 too, unless told otherwise; and it is told by whoever knows
/// that the other one is open, which is not known of tailscaled before there is a machine.
fn collide((key, a): (&str, SocketAddr), (other_key, b): (&str, SocketAddr)) -> bool {
    let of_tailscaled = [key, other_key].contains(&"tailscale.proxy_listen");
    let beside = leaves_ipv4(key, a) && b.is_ipv4() || leaves_ipv4(other_key, b) && a.is_ipv4();
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && overlap && (of_tailscaled || !beside)
}

/// `[::]` of the mesh and of nginx is for IPv6 alone where another one listens on IPv4.
fn leaves_ipv4(key: &str, addr: SocketAddr) -> bool {
    let lists = ["mesh.", "backends[", "forwards["];
    addr.ip() == Ipv6Addr::UNSPECIFIED && lists.iter().any(|list| key.starts_with(list))
}

/// A connection to `target` from this machine reaches the listener, as far as the addresses tell.
pub(super) fn leads_to(target: &HostPort, listener: SocketAddr) -> bool {
    let (all, own) = (listener.ip().is_unspecified(), listener.ip().is_loopback());
    target.port == listener.port()
        && match &target.host {
            Host::Name(name) => name.as_str() == "localhost" && (all || own),
            Host::Ip(ip) if ip.is_unspecified() => all || own,
            Host::Ip(ip) => *ip == listener.ip() || (all && ip.is_loopback()),
        }
}
