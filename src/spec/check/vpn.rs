//! The sections of the VPN: server, registry, node.

use std::time::Duration;

use super::super::keys::Spec;
use super::super::values::*;
use super::{Check, bare};
use crate::names::{DnsName, SHARED_SPACE};

impl Check<'_> {
    pub(super) fn server(&mut self) {
        let Spec {
            server, vpn, dstack, ..
        } = self.spec;
        let within = |host: &DnsName| host.is_within(&vpn.base_domain);
        match (&server.url, &dstack.gateway_domain) {
            (ServerUrl::Is(url), _) => {
                if let Some(host) = url.host_str().and_then(|host| host.parse().ok()).filter(within) {
                    self.server_within(&["vpn.base_domain", "server.url"], &host);
                }
            }
            (ServerUrl::Auto, GatewayChoice::Is(Gateway::Domain { domain, .. })) if within(domain) => {
                let keys = ["vpn.base_domain", "dstack.gateway_domain"];
                self.server_within(&keys, domain);
            }
            _ => {}
        }
        if vpn.prefix.prefix_len() > 29 {
            self.error(
                &["vpn.prefix"],
                "the VPN has no room for nodes",
                "expected a network of /29 or larger",
                "take a part of 100.64.0.0/10, such as 100.64.0.0/16",
            );
        } else if self.is_set("vpn.prefix") && !SHARED_SPACE.contains(&vpn.prefix) {
            // The default is what the predecessor had; `doctor` notes it.
            self.warn(
                &["vpn.prefix"],
                format!("{} lies outside {SHARED_SPACE}", vpn.prefix),
                "Tailscale clients treat such addresses as foreign: routes only on request, hidden in their status",
                "for a new VPN take a part of it, such as 100.64.0.0/16; changing it renumbers the nodes",
            );
        }
    }

    pub(super) fn registry(&mut self) {
        let registry = &self.spec.registry;
        match registry.store {
            Store::Etcd if registry.endpoints.is_empty() => {
                self.error(
                    &["registry.endpoints", "registry.store"],
                    "the store etcd needs `registry.endpoints`",
                    "where is etcd?",
                    "set `endpoints = [\"http://10.0.0.1:2379\"]` in [registry]",
                );
            }
            Store::Embedded if !registry.endpoints.is_empty() => self.warn(
                &["registry.endpoints", "registry.store"],
                "`registry.endpoints` is not used",
                "the store is embedded",
                "set `store = \"etcd\"` in [registry]",
            ),
            _ => {}
        }
        let (silence, forget) = (registry.silence, registry.forget_after);
        if forget > Duration::ZERO && silence >= forget {
            self.warn(
                &["registry.forget_after", "registry.silence"],
                "nodes are forgotten before they count as silent",
                format!("`registry.silence` is {}", bare(&silence)),
                "let `forget_after` be longer than `silence`; \"0s\" is never",
            );
        }
    }

    pub(super) fn node(&mut self) {
        let Spec { node, tailscale, .. } = self.spec;
        if node.heartbeat >= node.silence {
            self.warn(
                &["node.heartbeat", "node.silence"],
                "the node counts as silent between two heartbeats",
                format!(
                    "`node.heartbeat` ({}) has to be shorter than `node.silence` ({})",
                    bare(&node.heartbeat),
                    bare(&node.silence)
                ),
                "with a tenth of `node.silence`, some may get lost",
            );
        }
        if node.tun == Tun::Device && tailscale.proxy_listen.is_some() {
            self.warn(
                &["tailscale.proxy_listen", "node.tun"],
                "`tailscale.proxy_listen` is not used",
                "with `node.tun` = \"device\" programs reach the VPN by themselves",
                "leave it out, or set `tun = \"userspace\"` in [node]",
            );
        }
    }

    fn server_within(&mut self, keys: &[&str], host: &DnsName) {
        let base = &self.spec.vpn.base_domain;
        let message = format!("the server's host {host} lies within `vpn.base_domain`");
        self.error(
            keys,
            message,
            format!("nodes would look for it in the VPN, below {base}"),
            "give the VPN a domain of its own, such as dstack.internal",
        );
    }
}
