//! What a change costs those who use the machine: no diff of a file says it, so it is said of the settings.

use std::net::SocketAddr;

use super::document::{Change, List, Place};
use crate::desired::{is_wildcard, only_ipv6};
use crate::spec::{AllowedApps, Backend, Forward, Protocol, Role, ServerUrl, Spec};

/// More apps than these are counted.
const APPS: usize = 3;

/// What somebody notices of a change, beyond the actions that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) text: String,
    /// Somebody who is served now will not be, or elsewhere.
    pub(super) breaks: bool,
}

fn breaks(text: impl Into<String>) -> Option<Effect> {
    let (text, breaks) = (text.into(), true);
    Some(Effect { text, breaks })
}

fn harmless(text: impl Into<String>) -> Option<Effect> {
    let (text, breaks) = (text.into(), false);
    Some(Effect { text, breaks })
}

/// `None`: nobody notices.
pub(super) fn effect(change: &Change, old: &Spec, new: &Spec) -> Option<Effect> {
    match change {
        Change::Added(..) => None,
        Change::Removed(entry) => match entry.place.list {
            List::Backends => withdrawn(backend(old, &entry.place)?, new),
            List::Forwards => closed("local apps", forward(old, &entry.place)?.listen),
        },
        Change::Value {
            of: Some(place), key, ..
        } => match place.list {
            List::Backends => of_backend(key, backend(old, place)?, backend(new, place)?, new),
            List::Forwards => of_forward(key, forward(old, place)?, forward(new, place)?, new),
        },
        Change::Value { key, .. } => of_key(key, old, new),
    }
}

fn backend<'s>(spec: &'s Spec, place: &Place) -> Option<&'s Backend> {
    let mut backends = spec.backends.iter();
    backends.find(|it| format!("\"{}\"", it.name) == place.name)
}

fn forward<'s>(spec: &'s Spec, place: &Place) -> Option<&'s Forward> {
    let mut forwards = spec.forwards.iter();
    forwards.find(|it| format!("\"{}\"", it.name) == place.name)
}

/// Of a listener that goes.
fn closed(who: &str, listen: SocketAddr) -> Option<Effect> {
    breaks(format!(
        "{who} are refused at {listen} from now on; open sessions go on"
    ))
}

/// Of a listener that goes elsewhere; `open` is what becomes of what is open.
fn moved(who: &str, old: SocketAddr, new: SocketAddr, spec: &Spec, open: &str) -> Option<Effect> {
    match given_up(old, Some(new), spec) {
        Some(place) => breaks(format!("{who} are refused {place} from now on; open {open}")),
        None => harmless(format!(
            "{who} are served at {old} as before, and elsewhere at that port, too"
        )),
    }
}

/// Where one that listened at `old` can be reached no longer; `None`: it can everywhere.
fn given_up(old: SocketAddr, new: Option<SocketAddr>, spec: &Spec) -> Option<String> {
    let Some(new) = new.filter(|new| new.port() == old.port()) else {
        return Some(format!("at {old}"));
    };
    let takes_both = is_wildcard(new) && !only_ipv6(spec).contains(&new);
    let is_any = |addr: SocketAddr| addr.ip().is_unspecified();
    match (is_any(old), is_any(new)) {
        _ if takes_both => None,
        (false, true) if old.is_ipv4() == new.is_ipv4() => None,
        (true, false) if is_wildcard(old) || old.is_ipv4() == new.is_ipv4() => Some(format!(
            "at every address of port {} but {}",
            old.port(),
            new.ip()
        )),
        (true, true) if is_wildcard(old) => Some(format!("at every IPv6 address of port {}", old.port())),
        _ => Some(format!("at {old}")),
    }
}

/// Of a fact that is another one now.
pub(super) fn of_fact(key: &str, spec: &Spec) -> Option<Effect> {
    match key {
        "gateway" if spec.role.server && spec.server.url == ServerUrl::Auto => new_url(),
        "gateway" => of_key("dstack.gateway_domain", spec, spec),
        _ => None,
    }
}

fn of_key(key: &str, old: &Spec, new: &Spec) -> Option<Effect> {
    let (server, node) = (old.role.server && new.role.server, old.role.node && new.role.node);
    match key {
        "role" => role(old.role, new.role),
        "allowed_apps" if server => {
            apps("the VPC API", "403", &old.allowed_apps, &new.allowed_apps).map(|effect| {
                let stay = match effect.breaks {
                    true => "; its nodes that have joined stay in the VPN",
                    false => "",
                };
                let text = effect.text + stay;
                Effect { text, ..effect }
            })
        }
        "dstack.gateway_domain" => harmless("calls to other apps take the new way from the next one on"),
        "mesh.http_listen" => {
            let who = "local apps";
            moved(
                who,
                old.mesh.http_listen,
                new.mesh.http_listen,
                new,
                "requests may finish",
            )
        }
        "mesh.client_listen" => {
            let who = "local apps that call the proxy without nginx";
            moved(
                who,
                old.mesh.client_listen,
                new.mesh.client_listen,
                new,
                "requests may finish",
            )
        }
        "mesh.https_listen" => {
            let who = "peers";
            moved(
                who,
                old.mesh.https_listen,
                new.mesh.https_listen,
                new,
                "connections may finish",
            )
        }
        "mesh.front" => breaks(format!(
            "for a moment connections to {} and {} are refused; what is open may finish",
            new.mesh.http_listen, new.mesh.https_listen
        )),
        "metrics.listen" => {
            let place = given_up(old.metrics.listen?, new.metrics.listen, new)?;
            breaks(format!("the metrics can be read {place} no longer"))
        }
        "status.listen" => {
            let place = given_up(old.status.listen?, new.status.listen, new)?;
            breaks(format!("the status page can be seen {place} no longer"))
        }
        "server.url" if server => new_url(),
        "server.headscale_listen" if server => match new.server.url {
            ServerUrl::Auto if old.server.headscale_listen.port() != new.server.headscale_listen.port() => {
                new_url()
            }
            _ => breaks(format!(
                "nodes are cut off from Headscale unless server.url leads to {}; those that have joined still reach each other",
                new.server.headscale_listen
            )),
        },
        "vpn.prefix" if server => harmless(format!(
            "nodes that have joined keep their addresses; those that join from now on get one of {}",
            new.vpn.prefix
        )),
        "vpn.base_domain" if server => breaks(format!(
            "nodes are named <node>.{} from now on; names below {} are found no longer",
            new.vpn.base_domain, old.vpn.base_domain
        )),
        "vpn.nameservers" if server => harmless("nodes ask these resolvers for all names outside the VPN"),
        "vpn.derp" | "vpn.derp_map_url" if server => {
            harmless("what nodes send through a relay pauses until they have found another one")
        }
        "registry.store" | "registry.endpoints" if server => breaks(
            "nodes are known again once they have announced themselves, within their heartbeat; \
             who owns which record is not taken over",
        ),
        "node.name" if node => breaks("others find this node by its new name only"),
        "node.type" if node => {
            let said = |spec: &Spec| spec.node.node_type.as_ref().map(ToString::to_string);
            match (said(old), said(new)) {
                (Some(was), Some(now)) => {
                    breaks(format!("it is discovered as {now}, and as {was} no longer"))
                }
                (Some(was), None) => breaks(format!("it is discovered as {was} no longer")),
                (None, Some(now)) => harmless(format!("it is discovered as {now}")),
                (None, None) => None,
            }
        }
        "node.server_app_id" if node => breaks(
            "this node leaves the VPN that it is in, and joins that of the new server under another address",
        ),
        "log.format" => harmless("it holds from the next start of the daemon on"),
        "supervisor.program" => harmless("it holds from the next start of the machine on"),
        key if key.starts_with("identity.") => harmless("it holds from the next certificate on"),
        _ => None,
    }
}

fn new_url() -> Option<Effect> {
    breaks(
        "nodes go on at the old URL as long as it answers; when it does not, they register again within some two minutes, \
         and still reach each other until then",
    )
}

fn role(old: Role, new: Role) -> Option<Effect> {
    let mut said = Vec::new();
    match (old.server, new.server) {
        (true, false) => said.push(
            "nobody can join the VPN or discover nodes here any more; nodes that have joined still reach each other",
        ),
        (false, true) => said.push("Headscale and the VPC API begin to serve"),
        _ => {}
    }
    match (old.node, new.node) {
        (true, false) => said.push(
            "this machine leaves the VPN and what it has open there breaks; its key is kept, so that it can come back as \
             the same node",
        ),
        (false, true) => said.push("this machine joins the VPN"),
        _ => {}
    }
    let text = said.join("; ");
    let breaks = (old.server && !new.server) || (old.node && !new.node);
    Some(Effect { text, breaks })
}

fn of_backend(key: &str, old: &Backend, new: &Backend, all: &Spec) -> Option<Effect> {
    let tcp = new.protocol == Protocol::Tcp;
    match key {
        "server_name" | "protocol" => withdrawn(old, all),
        "listen" if tcp && old.protocol == new.protocol => {
            moved("peers", old.listen?, new.listen?, all, "sessions go on")
        }
        "allowed_apps" if tcp => {
            let refusal = "a closed connection";
            let effect = apps("this backend", refusal, &old.allowed_apps, &new.allowed_apps)?;
            let text = effect.text + "; open sessions go on";
            Some(Effect { text, ..effect })
        }
        "allowed_apps" => apps("this backend", "403", &old.allowed_apps, &new.allowed_apps),
        "upstream" if tcp => harmless("new sessions go there; those that are open stay where they are"),
        "upstream" => harmless("new requests go there; those under way end where they are"),
        _ => None,
    }
}

fn of_forward(key: &str, old: &Forward, new: &Forward, all: &Spec) -> Option<Effect> {
    match key {
        "listen" => moved("local apps", old.listen, new.listen, all, "sessions go on"),
        "target_app" | "target_port" | "target_instance" => {
            harmless("new sessions go there; those that are open stay where they are")
        }
        _ => None,
    }
}

/// What becomes of peers of a backend that is not where it was.
fn withdrawn(old: &Backend, new: &Spec) -> Option<Effect> {
    match (old.protocol, old.listen) {
        (Protocol::Tcp, Some(listen)) => closed("peers", listen),
        _ => hosts(old, new),
    }
}

/// What becomes of requests for a backend that does not answer to its Host any more.
fn hosts(old: &Backend, new: &Spec) -> Option<Effect> {
    let host = match &old.server_name {
        Some(name) => format!("peers that ask for Host {name}"),
        None => "peers that ask for a Host that no backend names".to_owned(),
    };
    let takes_over = |backend: &&Backend| {
        let same = backend.server_name == old.server_name || backend.server_name.is_none();
        same && backend.protocol == Protocol::Http
    };
    match new.backends.iter().find(takes_over) {
        Some(other) => breaks(format!("{host} are answered by backend \"{}\"", other.name)),
        None => breaks(format!("{host} get 421")),
    }
}

/// Whom a list lets in no longer, or from now on. `refusal`: what the others get.
fn apps(what: &str, refusal: &str, old: &AllowedApps, new: &AllowedApps) -> Option<Effect> {
    use AllowedApps::{Any, Only};
    let name = |apps: Vec<String>| match apps.len() {
        more if more > APPS => format!("{more} apps"),
        1 => format!("app {}", apps.join("")),
        _ => format!("apps {}", apps.join(", ")),
    };
    match (old, new) {
        (Any, Any) => None,
        (Any, Only(apps)) => {
            let some = name(apps.iter().map(ToString::to_string).collect());
            breaks(format!("only {some} may call {what}, every other gets {refusal}"))
        }
        (Only(_), Any) => harmless(format!("every app may call {what}")),
        (Only(old), Only(new)) => {
            let lost: Vec<_> = old.difference(new).map(ToString::to_string).collect();
            match lost.is_empty() {
                true => harmless(format!(
                    "{} may call {what}, too",
                    name(new.difference(old).map(ToString::to_string).collect())
                )),
                false => breaks(format!("{}: {refusal} from {what} from now on", name(lost))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{ConfigText, load};

    #[test]
    fn nobody_is_refused_where_the_new_address_takes_the_old_one_in() {
        let spec = |more: &str| {
            let text = format!("[mesh]\nhttp_listen = \"[::]:9\"\n{more}");
            load(Some(&ConfigText::new("vpc.toml", text)), &BTreeMap::new())
                .unwrap()
                .spec
        };
        let (alone, beside) = (spec(""), spec("[metrics]\nlisten = \"127.0.0.1:9\"\n"));
        for (old, new, spec, place) in [
            ("0.0.0.0:9", "0.0.0.0:8", &alone, "at 0.0.0.0:9"),
            (
                "0.0.0.0:9",
                "127.0.0.1:9",
                &alone,
                "at every address of port 9 but 127.0.0.1",
            ),
            (
                "[::]:9",
                "127.0.0.1:9",
                &alone,
                "at every address of port 9 but 127.0.0.1",
            ),
            ("[::]:9", "[::1]:9", &alone, "at every address of port 9 but ::1"),
            ("[::]:9", "0.0.0.0:9", &alone, "at every IPv6 address of port 9"),
            ("0.0.0.0:9", "[::1]:9", &alone, "at 0.0.0.0:9"),
            ("127.0.0.1:9", "127.0.0.2:9", &alone, "at 127.0.0.1:9"),
            ("127.0.0.1:9", "0.0.0.0:9", &alone, ""),
            ("127.0.0.1:9", "[::1]:9", &alone, "at 127.0.0.1:9"),
            ("127.0.0.1:9", "[::]:9", &alone, ""),
            ("0.0.0.0:9", "[::]:9", &alone, ""),
            ("[::1]:9", "[::]:9", &beside, ""),
            // There `[::]` is for IPv6 alone.
            ("0.0.0.0:9", "[::]:9", &beside, "at 0.0.0.0:9"),
            ("127.0.0.2:9", "[::]:9", &beside, "at 127.0.0.2:9"),
        ] {
            let said = given_up(old.parse().unwrap(), Some(new.parse().unwrap()), spec);
            assert_eq!(said.unwrap_or_default(), place, "{old} to {new}");
        }
    }
}
