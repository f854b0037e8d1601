//! The apps at both ends: those behind the backends of this machine, and those that its forwards lead to.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Finding, Patient, web};
use crate::mesh::reach;
use crate::names::{Host, HostPort};

/// For one of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was seen.
pub(super) struct Apps {
    backends: Vec<Behind>,
    /// Each forward, and where it is reached, with why it leads nowhere.
    forwards: Vec<(String, Result<(), String>)>,
}

/// Behind a backend.
struct Behind {
    backend: String,
    upstreams: usize,
    /// Those that do not answer, and why.
    down: Vec<String>,
    /// Names of upstreams that the VPN does not know, which this machine asks for names.
    lost: Vec<String>,
}

enum Upstream {
    Up,
    Down(String),
    Lost(String),
}

/// Connects to each of them and sends nothing.
pub(super) async fn ask(patient: &Patient<'_>) -> Apps {
    let by_vpn = std::fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| asks_the_vpn(&text));
    let backends = patient.spec.backends.iter().map(async |backend| {
        let asking = backend.upstream.iter().map(|at| upstream(at, by_vpn));
        let (mut down, mut lost) = (Vec::new(), Vec::new());
        for upstream in join_all(asking).await {
            match upstream {
                Upstream::Up => {}
                Upstream::Down(why) => down.push(why),
                Upstream::Lost(name) => lost.push(name),
            }
        }
        Behind {
            backend: backend.name.to_string(),
            upstreams: backend.upstream.len(),
            down,
            lost,
        }
    });
    let gateway = patient.seen.facts.gateway.as_ref().map(|fact| &fact.value);
    // Without these the forwards cannot be tried, and that is said already.
    let ready = patient.seen.identity.as_deref().zip(gateway);
    let forwards = patient.spec.forwards.iter().filter_map(|it| Some((it, ready?)));
    let forwards = forwards.map(async |(it, (identity, gateway))| {
        let target = (it.target_app, it.target_instance, it.target_port);
        let told = format!(
            "the forward \"{}\" ({} to app {}, port {})",
            it.name, it.listen, it.target_app, it.target_port
        );
        (told, reach(identity, gateway, target, PATIENCE).await)
    });
    let (backends, forwards) = tokio::join!(join_all(backends), join_all(forwards));
    Apps { backends, forwards }
}

async fn upstream(at: &HostPort, by_vpn: bool) -> Upstream {
    let host = at.host.to_string();
    if by_vpn && matches!(at.host, Host::Name(_)) {
        let known = tokio::time::timeout(PATIENCE, web::is_known(&host)).await;
        if !known.unwrap_or(false) {
            return Upstream::Lost(host);
        }
    }
    let why = match tokio::time::timeout(PATIENCE, web::connect(&host, at.port)).await {
        Ok(Ok(_)) => return Upstream::Up,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {}s", PATIENCE.as_secs()),
    };
    Upstream::Down(format!("{at}: {why}"))
}

/// Tailscale's own address for that, which tailscaled writes there.
fn asks_the_vpn(resolv_conf: &str) -> bool {
    let mut lines = resolv_conf.lines().map(str::split_ascii_whitespace);
    lines.any(|words| words.eq(["nameserver", "100.100.100.100"]))
}

pub(super) fn findings(apps: Apps) -> Vec<Finding> {
    let backends = apps.backends.into_iter().flat_map(Behind::findings);
    let forwards = apps.forwards.into_iter().map(|(name, reached)| match reached {
        Ok(()) => Finding::ok("forward", format!("{name} leads to its app")),
        Err(why) => Finding::error("forward", format!("{name} leads nowhere: {why}"))
            .why("Programs that connect to it are cut off.")
            .mend("is that app deployed, and does it have a TCP backend on that port which lets this app in?")
            .run("dstack-vpc doctor   # on a machine of that app"),
    });
    backends.chain(forwards).collect()
}

impl Behind {
    fn findings(self) -> Vec<Finding> {
        let Self {
            backend,
            upstreams,
            down,
            lost,
        } = self;
        if down.is_empty() && lost.is_empty() {
            let what = format!("the app behind the backend \"{backend}\" takes connections");
            return vec![Finding::ok("backend", what)];
        }
        let mut findings: Vec<_> = lost.iter().map(|name| unknown(name, &backend)).collect();
        if !down.is_empty() {
            let what = format!(
                "behind the backend \"{backend}\" nobody answers at {}",
                down.join("; ")
            );
            let why = match down.len() + lost.len() < upstreams {
                true => "Its other upstreams take over; the load is theirs.",
                false => {
                    "Peers that call it get 502 `backend_unreachable`, or are cut off, until it listens there."
                }
            };
            let finding = Finding::warning("backend", what).why(why);
            let mend = "start that app, or correct the backend's upstream (MESH_BACKEND); where it is said:";
            findings.push(finding.mend(mend).run("dstack-vpc explain backends"));
        }
        findings
    }
}

fn unknown(name: &str, backend: &str) -> Finding {
    Finding::error(
        "names",
        format!("{name}, an upstream of the backend \"{backend}\", is a name that the VPN does not know"),
    )
    .why(
        "Since this node joined, names are looked up in the VPN (node.accept_dns), and those outside it by the server's \
         vpn.nameservers, which know nothing of other containers. nginx refuses every new configuration with an unknown \
         name: no edit goes live, and no renewed certificate.",
    )
    .mend("run that app in this container's network (network_mode: service:dstack-vpc), and call it 127.0.0.1")
    .mend("or accept_dns = false in [node]: then this node does not know the names of the VPN")
    .mend("or nameservers = [] in [vpn] on the server: then each node asks the resolver that it had")
    .run("dstack-vpc explain backends   # where it is said")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_of_the_vpn_is_recognised() {
        let written = "# by tailscaled\nnameserver 100.100.100.100\nsearch dstack.internal\n";
        assert!(asks_the_vpn(written));
        for other in ["", "nameserver 127.0.0.11\n", "# nameserver 100.100.100.100\n"] {
            assert!(!asks_the_vpn(other), "{other}");
        }
    }
}
