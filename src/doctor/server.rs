//! The VPN's server as others see it: its public URL, its etcd, and, from a node, the way to it.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use url::Url;

use super::web::{self, Date, Page};
use super::{Finding, Patient};
use crate::desired::server_url;
use crate::http::system_roots;
use crate::names::{API_HOST, AppId};
use crate::ratls;
use crate::spec::{ServerAppId, Store};

type Asked = (Url, Result<Page, String>);

/// What was seen. What this role does not have was not asked.
#[derive(Default)]
pub(super) struct Server {
    /// Headscale at its public URL, or why that URL is not known.
    url: Option<Result<Asked, String>>,
    etcd: Vec<Asked>,
    /// The VPC API as this node reaches it.
    api: Option<(Way, Result<Page, String>)>,
}

/// How a node gets to the API.
enum Way {
    /// It runs in this machine.
    Here,
    Through(AppId),
}

impl Server {
    pub(super) fn dates(&self) -> impl Iterator<Item = Date> {
        let url = self.url.iter().flatten();
        url.chain(&self.etcd)
            .filter_map(|(_, page)| page.as_ref().ok()?.date.clone())
    }
}

pub(super) async fn ask(patient: &Patient<'_>) -> Server {
    let (url, etcd, api) = tokio::join!(ask_url(patient), ask_etcd(patient), ask_api(patient));
    Server { url, etcd, api }
}

/// Only while Headscale runs: otherwise it is no wonder that nobody answers.
async fn ask_url(patient: &Patient<'_>) -> Option<Result<Asked, String>> {
    if !patient.spec.role.server {
        return None;
    }
    let url = match server_url(patient.spec, &patient.seen.facts) {
        Err(why) => return Some(Err(why)),
        Ok(url) => url.parse::<Url>().ok().filter(|_| patient.runs("headscale"))?,
    };
    let mut health = url.clone();
    health.set_path("/health");
    Some(Ok((url, web::get(&health, &[]).await)))
}

async fn ask_etcd(patient: &Patient<'_>) -> Vec<Asked> {
    let registry = &patient.spec.registry;
    if !patient.spec.role.server || registry.store != Store::Etcd {
        return Vec::new();
    }
    let asking = registry.endpoints.iter().map(async |url| {
        let mut health = url.clone();
        health.set_path("/health");
        (url.clone(), web::get(&health, &[]).await)
    });
    futures_util::future::join_all(asking).await
}

/// As the node itself would go: through the daemon's own proxy, so only while the daemon runs.
async fn ask_api(patient: &Patient<'_>) -> Option<(Way, Result<Page, String>)> {
    let spec = patient.spec;
    if !spec.role.node || patient.daemon.is_none() {
        return None;
    }
    let own = patient.seen.facts.app_id.as_ref().map(|fact| fact.value);
    let app = match spec.node.server_app_id {
        ServerAppId::Is(app) => Some(app),
        ServerAppId::SelfApp => own,
    };
    let at = |listen| format!("http://{listen}/api/ping").parse::<Url>().ok();
    if spec.role.server && (app.is_none() || app == own) {
        let page = web::get(&at(spec.server.api_listen)?, &[]).await;
        return Some((Way::Here, page));
    }
    let app = app?;
    let headers = [("host", API_HOST), ("x-dstack-target-app", &*app.to_string())];
    let page = web::get(&at(spec.mesh.client_listen)?, &headers).await;
    Some((Way::Through(app), page))
}

pub(super) fn findings(patient: &Patient<'_>, server: &Server) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &server.url {
        Some(Ok((url, page))) => findings.extend(public_url(patient, url, page)),
        // Then the agent or the gateway is the matter, which is said already.
        Some(Err(why)) if waits(patient) => findings.push(Finding::note("server-url", why.clone())),
        Some(Err(why)) => findings.push(
            Finding::error("server-url", why.clone())
                .why("Nodes are told this URL when they register: until it is known, none can.")
                .run("dstack-vpc explain server.url"),
        ),
        None => {}
    }
    findings.extend(etcd(&server.etcd));
    findings.extend(server.api.as_ref().map(|(way, page)| api(way, page)));
    findings
}

/// What the URL is made of is not known.
fn waits(patient: &Patient<'_>) -> bool {
    let facts = &patient.seen.facts;
    facts.app_id.is_none() || facts.gateway.is_none()
}

fn public_url(patient: &Patient<'_>, url: &Url, page: &Result<Page, String>) -> Vec<Finding> {
    let shown = url.as_str().trim_end_matches('/');
    let listen = patient.spec.server.headscale_listen;
    let page = match page {
        Ok(page) if page.status.is_success() && page.body.windows(4).any(|word| word == b"pass") => page,
        other => {
            let why = match other {
                Ok(page) => format!(
                    "it answers with status {}, and not as Headscale does",
                    page.status.as_u16()
                ),
                Err(why) => why.clone(),
            };
            return vec![
                Finding::error("server-url", format!("Headscale runs, but not at its public URL {shown}: {why}"))
                    .why("Nodes connect to this URL: from here it leads elsewhere or nowhere, and from there most likely too.")
                    .run(format!("curl -i {shown}/health"))
                    .run(format!("curl -i http://{listen}/health   # past the gateway"))
                    .mend("is that port open in the app's policy, and server.headscale_listen not on loopback?")
                    .mend("else name the right one: server.url, or VPC_SERVER_URL"),
            ];
        }
    };
    let mut findings = vec![Finding::ok("server-url", format!("Headscale answers at {shown}"))];
    if let Some(why) = distrusted(url, &page.chain) {
        findings.push(
            Finding::error("server-url", format!("the certificate of {shown} is not one that nodes trust: {why}"))
                .why(
                    "Tailscale clients take what a public authority signed, or one that the node's system knows; not the KMS. \
                     They do not join otherwise.",
                )
                .mend("let the gateway end TLS with a public certificate (a name without `s` after the port)")
                .mend("or have every node trust the authority: SSL_CERT_FILE"),
        );
    }
    findings
}

/// Why this system, like a node's, does not trust the server. Nothing to say of plain HTTP.
fn distrusted(url: &Url, chain: &[CertificateDer<'static>]) -> Option<String> {
    let (leaf, others) = chain.split_first()?;
    let name = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name).ok()?;
    let roots = Arc::new(system_roots());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, ratls::provider().clone());
    match verifier.build() {
        Ok(verifier) => {
            let verified = verifier.verify_server_cert(leaf, others, &name, &[], UnixTime::now());
            verified.err().map(|error| error.to_string())
        }
        Err(error) => Some(format!("this system knows no authorities: {error}")),
    }
}

fn etcd(asked: &[Asked]) -> Vec<Finding> {
    #[derive(Deserialize)]
    struct Health {
        health: String,
    }
    let well = |page: &Result<Page, String>| match page {
        Err(why) => Err(why.clone()),
        // Of a member without a leader etcd says {"health":"false"}, with status 503.
        Ok(page) => match serde_json::from_slice::<Health>(&page.body) {
            Ok(Health { health }) if health == "true" => Ok(()),
            Ok(_) => Err("it has no leader: more than half of the members are away".to_owned()),
            Err(_) => Err(format!("status {}, and not etcd's answer", page.status.as_u16())),
        },
    };
    let one_is_well = asked.iter().any(|(_, page)| well(page).is_ok());
    let finding = |(url, page): &Asked| {
        let shown = url.as_str().trim_end_matches('/');
        match well(page) {
            Ok(()) => Finding::ok("etcd", format!("etcd answers at {shown}")),
            Err(why) => Finding::error("etcd", format!("etcd at {shown}: {why}"))
                .why(match one_is_well {
                    true => "The others still do; with more than half of them away, nothing can be recorded.",
                    false => "No member answers: nodes cannot register or announce themselves, and discovery grows old.",
                })
                .milder(one_is_well)
                .run(format!("curl -i {shown}/health"))
                .run("dstack-vpc explain registry.endpoints"),
        }
    };
    asked.iter().map(finding).collect()
}

fn api(way: &Way, page: &Result<Page, String>) -> Finding {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let place = match way {
        Way::Here => "in this machine".to_owned(),
        Way::Through(app) => format!("of app {app}"),
    };
    let why = match page {
        Ok(page) if page.status.is_success() => {
            return Finding::ok("vpc-server", format!("the VPC API {place} answers"));
        }
        Ok(page) => match serde_json::from_slice::<Refusal>(&page.body) {
            Ok(Refusal { error }) => error,
            Err(_) => format!("status {}", page.status.as_u16()),
        },
        Err(why) => why.clone(),
    };
    let finding = Finding::error(
        "vpc-server",
        format!("the VPC API {place} cannot be reached: {why}"),
    )
    .why("This node registers and announces itself there. One that has joined stays in the VPN without it.");
    match way {
        Way::Here => finding.run("dstack-vpc status"),
        Way::Through(_) => finding
            .run("dstack-vpc explain node.server_app_id   # is it the server's app id?")
            .run("dstack-vpc doctor   # on the server")
            .mend("the codes are explained in docs/errors.md"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use hyper::StatusCode;

    fn page(status: u16, body: &str) -> Result<Page, String> {
        Ok(Page {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.to_owned().into(),
            date: None,
            chain: Vec::new(),
        })
    }

    #[test]
    fn one_member_of_etcd_that_is_well_makes_the_others_a_warning() {
        let url = |port: u16| format!("http://127.0.0.1:{port}").parse::<Url>().unwrap();
        let down = || Err("Connection refused".to_owned());
        let leaderless = || page(503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#);
        let severities = |asked: Vec<Asked>| etcd(&asked).into_iter().map(|f| f.severity).collect::<Vec<_>>();
        assert_eq!(
            severities(vec![(url(1), down()), (url(2), leaderless())]),
            [Severity::Error; 2]
        );
        let well = page(200, r#"{"health":"true"}"#);
        assert_eq!(
            severities(vec![(url(1), down()), (url(2), well)]),
            [Severity::Warning, Severity::Ok]
        );
        assert!(etcd(&[(url(1), leaderless())])[0].what.contains("no leader"));
    }

    #[test]
    fn a_certificate_of_the_kms_is_not_one_that_nodes_trust() {
        use crate::agent::dev::{LeafRequest, Pki};
        let app = AppId::from_bytes([7; 20]);
        let chain = Pki::new()
            .unwrap()
            .issue(&app, &LeafRequest::both())
            .unwrap()
            .chain();
        assert!(distrusted(&"https://vpn.example.com".parse().unwrap(), &chain).is_some());
        assert_eq!(distrusted(&"http://127.0.0.1:8080".parse().unwrap(), &[]), None);
    }

    #[test]
    fn the_mesh_says_itself_why_the_server_cannot_be_reached() {
        let app = Way::Through(AppId::from_bytes([7; 20]));
        let refused = api(
            &app,
            &page(502, r#"{"error":"no such app","code":"unreachable"}"#),
        );
        assert_eq!(refused.severity, Severity::Error);
        assert!(
            refused.what.ends_with("cannot be reached: no such app"),
            "{refused:?}"
        );
        assert_eq!(api(&Way::Here, &page(200, "pong")).severity, Severity::Ok);
    }
}
