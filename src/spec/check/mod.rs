//! What single values cannot tell: whether they go together.

mod listeners;
mod lists;
mod vpn;

use std::time::Duration;

use self::listeners::leads_to;
use super::codec::Codec;
use super::keys::Spec;
use super::problem::{Origin, Problem};
use super::table::Reader;
use super::values::*;

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
