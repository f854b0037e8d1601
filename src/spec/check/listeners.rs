//! The addresses that this machine listens on: whether it can have them all, and who reaches them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::keys::Spec;
use super::super::values::Tun;
use super::Check;
use crate::names::{Host, HostPort};

/// Of a listener that is not wanted.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Check<'_> {
    /// Every address this role listens on.
    pub(super) fn listening(&self) -> Vec<(Cow<'static, str>, SocketAddr)> {
        let Spec {
            role, mesh, server, ..
        } = self.spec;
        let mut all: Vec<(Cow<'static, str>, _)> = vec![
            ("mesh.client_listen".into(), mesh.client_listen),
            ("mesh.auth_listen".into(), mesh.auth_listen),
            ("mesh.http_listen".into(), mesh.http_listen),
            ("mesh.https_listen".into(), mesh.https_listen),
        ];
        if role.server {
            all.push(("server.headscale_listen".into(), server.headscale_listen));
            all.push(("server.api_listen".into(), server.api_listen));
        }
        all.extend(
            self.spec
                .metrics
                .listen
                .map(|addr| ("metrics.listen".into(), addr)),
        );
        all.extend(self.spec.status.listen.map(|addr| ("status.listen".into(), addr)));
        if role.node && self.spec.node.tun != Tun::Device {
            let proxy = self.spec.tailscale.proxy_listen;
            all.extend(proxy.map(|addr| ("tailscale.proxy_listen".into(), addr)));
        }
        // Where one could not be read, the places of the others are not known.
        let lists = ["backends", "forwards"].map(|list| self.known(&[list]));
        let backends = self.spec.backends.iter().enumerate().filter(|_| lists[0]);
        all.extend(backends.filter_map(|(i, it)| Some((format!("backends[{i}].listen").into(), it.listen?))));
        let forwards = self.spec.forwards.iter().enumerate().filter(|_| lists[1]);
        all.extend(forwards.map(|(i, it)| (format!("forwards[{i}].listen").into(), it.listen)));
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

/// Two sockets that cannot be open at once. `[::]` takes IPv4 too, unless told otherwise.
fn collide((key, a): (&str, SocketAddr), (other_key, b): (&str, SocketAddr)) -> bool {
    let beside = leaves_ipv4(key, a) && b.is_ipv4() || leaves_ipv4(other_key, b) && a.is_ipv4();
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && overlap && !beside
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
