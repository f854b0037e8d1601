//! Where this machine listens.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::keys::Spec;
use super::values::{Front, Tun};

impl Spec {
    /// Every address that a program of this machine takes, with its key. tailscaled takes its own only where it has no
    /// device, which `node.tun` may leave to the machine.
    pub fn listeners(&self) -> Vec<(Cow<'static, str>, SocketAddr)> {
        let Self {
            role, mesh, server, ..
        } = self;
        let asked_by_nginx = mesh.front == Front::Nginx;
        let without_device = role.node && self.node.tun != Tun::Device;
        let fixed = [
            ("mesh.client_listen", Some(mesh.client_listen)),
            ("mesh.auth_listen", asked_by_nginx.then_some(mesh.auth_listen)),
            ("mesh.http_listen", Some(mesh.http_listen)),
            ("mesh.https_listen", Some(mesh.https_listen)),
            (
                "server.headscale_listen",
                role.server.then_some(server.headscale_listen),
            ),
            ("server.api_listen", role.server.then_some(server.api_listen)),
            ("metrics.listen", self.metrics.listen),
            ("status.listen", self.status.listen),
            (
                "tailscale.proxy_listen",
                self.tailscale.proxy_listen.filter(|_| without_device),
            ),
        ];
        let fixed = fixed.into_iter().map(|(key, addr)| (Cow::from(key), addr));
        let backends = self.backends.iter().map(|backend| backend.listen).enumerate();
        let backends = backends.map(|(i, addr)| (format!("backends[{i}].listen").into(), addr));
        let forwards = self.forwards.iter().map(|forward| forward.listen).enumerate();
        let forwards = forwards.map(|(i, addr)| (format!("forwards[{i}].listen").into(), Some(addr)));
        let all = fixed.chain(backends).chain(forwards);
        all.filter_map(|(key, addr)| Some((key, addr?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::spec::{ConfigText, load};

    fn is_accepted(text: &str) -> bool {
        load(Some(&ConfigText::new("vpc.toml", text)), &BTreeMap::new()).is_ok()
    }

    #[test]
    fn the_port_that_nginx_asks_at_is_free_beside_the_built_in_front() {
        for (front, is_free) in [("nginx", false), ("builtin", true)] {
            let mesh = format!("[mesh]\nfront = \"{front}\"\nauth_listen = \"127.0.0.1:9100\"\n");
            let text = mesh + "[metrics]\nlisten = \"127.0.0.1:9100\"\n";
            assert_eq!(is_accepted(&text), is_free, "{front}");
        }
    }

    /// Nobody tells a `[::]` of ours to leave IPv4 to tailscaled, as it is told to beside the others.
    #[test]
    fn the_port_of_tailscaled_is_its_own() {
        let node = "role = \"node\"\n[node]\nname = \"db-1\"\n[mesh]\nclient_listen = \"[::]:1055\"\n";
        for (other, is_free) in [("metrics.", true), ("tailscale.proxy_", false)] {
            let (section, key) = other.split_once('.').unwrap();
            let text = format!("{node}[{section}]\n{key}listen = \"127.0.0.1:1055\"\n");
            assert_eq!(is_accepted(&text), is_free, "{text}");
        }
    }
}
