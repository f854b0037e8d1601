//! Backends and forwards: what peers reach here, and what local programs reach elsewhere.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::values::Protocol;
use super::Check;
use super::listeners::leads_to;
use crate::names::{API_HOST, HostPort};

impl Check<'_> {
    pub(super) fn backends(&mut self) {
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
            let api = |is_named: bool| is_named && self.spec.role.server;
            for (key, what, taken) in [
                ("name", "name", api(name.as_str() == API_HOST)),
                (
                    "server_name",
                    "server name",
                    api(http && host.as_ref().is_some_and(|host| host.as_str() == API_HOST)),
                ),
            ] {
                if taken {
                    self.error(
                        &[&format!("backends[{i}].{key}")],
                        format!("the {what} `{API_HOST}` is taken"),
                        "on a server it is the VPC API",
                        "choose another name",
                    );
                }
            }
            for upstream in backend.upstream.iter() {
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
    pub(super) fn streams(&mut self) {
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
}
