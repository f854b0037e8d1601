//! Listeners that believe whoever comes: does the internet come to them?
//!
//! The gateway leads to every port of an app unless the app's policy says otherwise. So it is asked, as anybody could.

use std::net::SocketAddr;

use futures_util::future::join_all;
use url::Url;

use super::web;
use super::{Finding, Patient};
use crate::spec::{Gateway, GatewayChoice};

/// A listener that asks for no certificate, on an address that others may reach.
struct Open {
    key: &'static str,
    addr: SocketAddr,
    /// What whoever reaches it can do.
    risk: &'static str,
    /// Where it answers anybody with 200.
    path: &'static str,
}

/// What was seen.
pub(super) struct Exposed(Vec<(Open, Trial)>);

enum Trial {
    /// It answered there.
    Reached(Url),
    Closed,
    /// Nobody is there to answer, or no gateway is known.
    NotTried,
}

pub(super) async fn ask(patient: &Patient<'_>) -> Exposed {
    let app_id = patient.seen.facts.app_id.as_ref().map(|fact| fact.value);
    let domain = match patient.seen.facts.gateway.as_ref().map(|fact| &fact.value) {
        Some(Gateway::Domain { domain, port }) => Some((domain, port)),
        _ => None,
    };
    let through = |open: &Open| {
        let ((domain, port), app_id) = domain.zip(app_id).filter(|_| patient.daemon.is_some())?;
        let url = format!(
            "https://{app_id}-{}.{domain}:{port}{}",
            open.addr.port(),
            open.path
        );
        url.parse::<Url>().ok()
    };
    let trying = open(patient).into_iter().map(async |open| {
        let tried = match through(&open) {
            None => Trial::NotTried,
            Some(url) => match web::get(&url, &[]).await {
                Ok(page) if page.status.is_success() => Trial::Reached(url),
                _ => Trial::Closed,
            },
        };
        (open, tried)
    });
    Exposed(join_all(trying).await)
}

fn open(patient: &Patient<'_>) -> Vec<Open> {
    let spec = patient.spec;
    let calls = "calls other apps as this one, and asks the guest agent for this app's keys";
    let mut all = vec![
        ("mesh.http_listen", spec.mesh.http_listen, calls, "/health"),
        ("mesh.client_listen", spec.mesh.client_listen, calls, "/health"),
    ];
    if spec.role.server {
        let risk = "registers, and changes any node's record, in the name of any app";
        all.push(("server.api_listen", spec.server.api_listen, risk, "/health"));
    }
    let risk = "learns which apps this one calls, and how this machine is";
    all.extend(
        spec.metrics
            .listen
            .map(|addr| ("metrics.listen", addr, risk, "/metrics")),
    );
    let reachable = all.into_iter().filter(|(_, addr, ..)| !addr.ip().is_loopback());
    reachable
        .map(|(key, addr, risk, path)| Open {
            key,
            addr,
            risk,
            path,
        })
        .collect()
}

pub(super) fn findings(patient: &Patient<'_>, exposed: Exposed) -> Vec<Finding> {
    let laboratory = matches!(
        patient.spec.dstack.gateway_domain,
        GatewayChoice::Is(Gateway::Fixed(_))
    );
    let finding = |(open, tried): (Open, Trial)| {
        let Open { key, addr, risk, .. } = open;
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let advised = |finding: Finding| {
            finding
                .mend(format!(
                    "{name} = \"127.0.0.1:{}\" in [{section}], or the address of the container network",
                    addr.port()
                ))
                .mend(format!("or close port {} in the app's policy", addr.port()))
        };
        Some(match tried {
            Trial::Reached(url) => advised(
                Finding::error("exposed", format!("the internet reaches {key}: {url} answers"))
                    .why(format!("It asks for no certificate: whoever comes {risk}.")),
            ),
            Trial::Closed => Finding::ok("exposed", format!("the gateway does not lead to {key} {addr}")),
            // Of the others `check` has warned.
            Trial::NotTried if laboratory || key != "mesh.http_listen" => return None,
            Trial::NotTried => advised(
                Finding::note("exposed", format!("{key} {addr} can be reached from outside, unless the app's policy closes the port"))
                    .why(format!(
                        "Whoever reaches it {risk}. While the daemon runs, doctor tries through the gateway whether anybody can."
                    )),
            ),
        })
    };
    exposed.0.into_iter().filter_map(finding).collect()
}
