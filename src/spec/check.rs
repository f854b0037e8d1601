//! What single values cannot tell: whether they go together.

mod vpn;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::codec::Codec;
use super::keys::Spec;
use super::problem::{Origin, Problem};
use super::table::Reader;
use super::values::*;
use crate::names::{Host, HostPort};

/// Of a listener that is not wanted.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The Host under which peers reach the VPC API of a server.
const API_HOST: &str = "vpc-server";

/// Where it was said that this is a server, when that is not where `role` was set.
pub(super) const SERVER_ROLE: &str = "role:server";
/// The same for a node.
pub(super) const NODE_ROLE: &str = "role:node";

/// Everything that does not go together.
pub(super) fn check(spec: &Spec, reader: &Reader<'_>) -> Vec<Problem> {
    let mut check = Check {
        spec,
        reader,
        found: Vec::new(),
    };
    check.roles();
    check.listeners();
    check.status_page();
    check.backends();
    check.streams();
    check.mesh();
    check.identity();
    if spec.role.server {
        check.server();
        check.registry();
    }
    if spec.role.node {
        check.node();
    }
    check.unused();
    check.found
}

struct Check<'a> {
    spec: &'a Spec,
    reader: &'a Reader<'a>,
    found: Vec<Problem>,
}

impl Check<'_> {
    fn origin(&self, key: &str) -> Origin {
        self.reader.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    fn is_set(&self, key: &str) -> bool {
        self.origin(key) != Origin::Default
    }

    /// `vpc.toml:3`, to point at a second place.
    fn place(&self, key: &str) -> String {
        match (self.origin(key), self.reader.source) {
            (Origin::File(spot), Some(source)) => format!("{}:{}", source.path, spot.line),
            (Origin::Variable { name, .. }, _) => format!("`{name}`"),
            _ => "the default".into(),
        }
    }

    /// Nothing is concluded from keys whose value was not read: what stands there is only a default.
    fn known(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.reader.failed.contains(*key))
    }

    /// An error about several keys, shown at the first that was set.
    fn error(&mut self, keys: &[&str], message: impl Into<String>, expected: impl Into<String>, help: &str) {
        if self.known(keys) {
            let problem = self
                .about(keys, message.into(), expected.into())
                .help(help.to_owned());
            self.found.push(problem);
        }
    }

    fn warn(&mut self, keys: &[&str], message: impl Into<String>, expected: impl Into<String>, help: &str) {
        if self.known(keys) {
            let problem = self
                .about(keys, message.into(), expected.into())
                .help(help.to_owned());
            self.found.push(problem.warning());
        }
    }

    fn about(&self, keys: &[&str], message: String, expected: String) -> Problem {
        let shown = keys.iter().find(|key| self.is_set(key)).or(keys.first());
        let origin = shown.map_or(Origin::Default, |key| self.origin(key));
        let problem = Problem::new(message, origin).expected(expected);
        match keys.first() {
            Some(key) => problem.key(*key),
            None => problem,
        }
    }

    fn roles(&mut self) {
        let Spec {
            role,
            allowed_apps,
            node,
            ..
        } = self.spec;
        if role.server && !self.is_set("allowed_apps") {
            self.error(&["allowed_apps", SERVER_ROLE, "role"],
                "a server needs `allowed_apps`",
                "with this role it has to say who may register", "set `allowed_apps = [\"<app id>\", …]`, or `\"any\"`, before the first section; or VPC_ALLOWED_APPS");
        } else if role.server && *allowed_apps == AllowedApps::Any {
            self.warn(
                &["allowed_apps"],
                "every app of this KMS may register with the server",
                "anyone with a valid certificate",
                "list the app ids that belong to this VPC",
            );
        }
        if role.node && node.name.is_none() {
            self.error(
                &["node.name", NODE_ROLE, "role"],
                "a node needs a name",
                "with this role `node.name` has to be given",
                "set `name = \"db-1\"` in [node]; or VPC_NODE_NAME",
            );
        }
        if role.node && !role.server && !self.is_set("node.server_app_id") {
            self.warn(
                &["node.server_app_id", NODE_ROLE, "role"],
                "this node looks for the VPC server in its own app",
                "`node.server_app_id` is \"self\" by default",
                "set `server_app_id` in [node], or VPC_SERVER_APP_ID; write \"self\" if that is meant",
            );
        }
    }

    /// Every address this role listens on.
    fn listening(&self) -> Vec<(Cow<'static, str>, SocketAddr)> {
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

    fn listeners(&mut self) {
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
    fn status_page(&mut self) {
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

    fn backends(&mut self) {
        if !self.known(&["backends"]) {
            return;
        }
        let (mut names, mut hosts) = (HashMap::new(), HashMap::new());
        let listening = self.listening();
        for (i, backend) in self.spec.backends.iter().enumerate() {
            let (name, host) = (&backend.name, &backend.server_name);
            if let Some(first) = names.insert(name, i) {
                self.twice(
                    "backends",
                    "name",
                    i,
                    first,
                    format!("two backends are named `{name}`"),
                );
            }
            if backend.protocol == Protocol::Tcp {
                self.tcp_backend(i);
            } else if backend.listen.is_some() {
                self.error(
                    &[
                        &format!("backends[{i}].listen"),
                        &format!("backends[{i}].protocol"),
                    ],
                    "`listen` is for TCP backends",
                    "peers reach this one through `mesh.https_listen`",
                    "add `protocol = \"tcp\"`, or leave `listen` out",
                );
            }
            let known = self.known(&[&format!("backends[{i}].protocol")]);
            let http = backend.protocol == Protocol::Http && known;
            if let Some(first) = http.then(|| hosts.insert(host, i)).flatten() {
                let message = match host {
                    Some(host) => format!("two backends have the server name `{host}`"),
                    None => "two backends have the server name `_`, which takes every other Host".into(),
                };
                self.twice("backends", "server_name", i, first, message);
            }
            if self.spec.role.server && http && host.as_ref().is_some_and(|host| host.as_str() == API_HOST) {
                self.error(
                    &[&format!("backends[{i}].server_name")],
                    format!("the server name `{API_HOST}` is taken"),
                    "on a server it is the VPC API",
                    "choose another name",
                );
            }
            for upstream in &backend.upstream {
                self.upstream(i, upstream, &listening);
            }
        }
    }

    /// What TCP needs, and what it has no use for.
    fn tcp_backend(&mut self, i: usize) {
        let key = |key: &str| format!("backends[{i}].{key}");
        if self.spec.backends[i].listen.is_none() {
            self.error(
                &[&key("protocol"), &key("listen")],
                "a TCP backend needs `listen`",
                "over TCP there is no Host to tell backends apart by",
                "add `listen = \"0.0.0.0:<a port of its own>\"`: peers reach it there, at the gateway under that port",
            );
        }
        if self.spec.backends[i].server_name.is_some() {
            self.error(
                &[&key("server_name"), &key("protocol")],
                "a TCP backend has no server name",
                "it is selected by its `listen`",
                "leave `server_name` out",
            );
        }
    }

    /// Forwards, and what holds for all that is TCP.
    fn streams(&mut self) {
        let (mut names, known) = (HashMap::new(), self.known(&["forwards"]));
        for (i, forward) in self.spec.forwards.iter().enumerate().filter(|_| known) {
            let name = &forward.name;
            if let Some(first) = names.insert(name, i) {
                self.twice(
                    "forwards",
                    "name",
                    i,
                    first,
                    format!("two forwards are named `{name}`"),
                );
            }
            if !forward.listen.ip().is_loopback() {
                self.warn(
                    &[&format!("forwards[{i}].listen")],
                    format!("whoever reaches the forward `{name}` speaks to the other app as this one"),
                    "others can reach this address",
                    "listen on 127.0.0.1",
                );
            }
        }
        // Silence is noticed with a delay of up to a quarter.
        if self.spec.limits.tcp_idle_timeout > Duration::from_secs(480) {
            self.warn(
                &["limits.tcp_idle_timeout"],
                "the gateway ends unused connections first",
                "it does so after 10m, and silence is noticed up to a quarter late",
                "with 8m or less the daemon ends them in order, and says so",
            );
        }
    }

    fn twice(&mut self, list: &str, key: &str, second: usize, first: usize, message: String) {
        let [there, here] = [first, second].map(|i| format!("{list}[{i}].{key}"));
        let [there_at, here_at] = [first, second].map(|i| format!("{list}[{i}]"));
        if self.known(&[&there]) {
            let place = self.place(if self.is_set(&there) { &there } else { &there_at });
            self.error(
                &[&here, &here_at],
                message,
                format!("the other is at {place}"),
                "give each its own",
            );
        }
    }

    fn upstream(
        &mut self,
        backend: usize,
        upstream: &HostPort,
        listening: &[(Cow<'static, str>, SocketAddr)],
    ) {
        for (listener, addr) in listening {
            // Headscale and the API are programs like any other; the mesh's own listeners lead back here.
            let own = listener.starts_with("mesh.") || listener.starts_with("backends[");
            if own && leads_to(upstream, *addr) {
                self.error(
                    &[&format!("backends[{backend}].upstream"), listener],
                    "the backend is this machine's own mesh",
                    format!("{upstream} is `{listener}` ({addr}, {})", self.place(listener)),
                    "give the address where the app itself listens",
                );
            }
        }
    }

    fn mesh(&mut self) {
        let Spec {
            mesh,
            dstack,
            reconcile,
            ..
        } = self.spec;
        if mesh.idle_timeout >= Duration::from_secs(600) {
            self.warn(
                &["mesh.idle_timeout"],
                "the gateway ends unused connections first",
                "it does so after 10m",
                "a shorter time saves calls from finding their connection closed",
            );
        }
        if let GatewayChoice::Is(Gateway::Fixed(at)) = &dstack.gateway_domain {
            for (key, addr) in [
                ("mesh.client_listen", mesh.client_listen),
                ("mesh.http_listen", mesh.http_listen),
            ] {
                if leads_to(at, addr) {
                    self.error(
                        &["dstack.gateway_domain", key],
                        "every call would come back to the outbound proxy",
                        format!("{at} is `{key}` ({addr}, {})", self.place(key)),
                        "give the address of the gateway, or of a peer's `mesh.https_listen`",
                    );
                }
            }
        }
        if reconcile.interval < Duration::from_secs(1) {
            self.error(
                &["reconcile.interval"],
                "`reconcile.interval` is too short",
                "expected 1s or more",
                "a change of the file is noticed at once in any case",
            );
        }
    }

    fn identity(&mut self) {
        let policy = &self.spec.identity;
        if policy.renew_before >= policy.lifetime {
            self.error(
                &["identity.renew_before", "identity.lifetime"],
                "a certificate would be due for renewal from the start",
                format!(
                    "`identity.renew_before` ({}) has to be shorter than `identity.lifetime` ({})",
                    bare(&policy.renew_before),
                    bare(&policy.lifetime)
                ),
                "a third of the lifetime is usual",
            );
        }
    }

    /// Sections that this role does not read.
    fn unused(&mut self) {
        let role = self.spec.role;
        for (section, used, wanted) in [
            ("server", role.server, "server"),
            ("vpn", role.server, "server"),
            ("registry", role.server, "server"),
            ("node", role.node, "node"),
        ] {
            let first = self.reader.origins.iter().find(|(key, origin)| {
                **origin != Origin::Default && key.split_once('.').is_some_and(|(name, _)| name == section)
            });
            if let (false, Some((key, _))) = (used, first) {
                self.warn(
                    &[key.as_str(), "role"],
                    format!("[{section}] is not used"),
                    format!("the role is {}", Role::toml(&role)),
                    &format!("add `{wanted}` to `role`, or leave the section out"),
                );
            }
        }
    }
}

fn bare(duration: &Duration) -> String {
    Duration::toml(duration).trim_matches('"').to_owned()
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
fn leads_to(target: &HostPort, listener: SocketAddr) -> bool {
    let (all, own) = (listener.ip().is_unspecified(), listener.ip().is_loopback());
    target.port == listener.port()
        && match &target.host {
            Host::Name(name) => name.as_str() == "localhost" && (all || own),
            Host::Ip(ip) if ip.is_unspecified() => all || own,
            Host::Ip(ip) => *ip == listener.ip() || (all && ip.is_loopback()),
        }
}
