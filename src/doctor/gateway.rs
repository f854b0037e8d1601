//! The gateways that the host names, each asked for its domain.

use rustls_pki_types::{CertificateDer, UnixTime};
use url::Url;

use super::web::{self, Date, Page};
use super::{Finding, Patient};
use crate::facts::gateway::{port_hint, told};
use crate::facts::host_shared;
use crate::ratls;
use crate::spec::{Gateway, GatewayChoice};

/// What was seen.
pub(super) enum Gateways {
    /// `dstack.gateway_domain` names it: where that leads was tried.
    Chosen {
        gateway: Gateway,
        reached: Result<(), String>,
    },
    /// The host's file names none, and why.
    Unnamed(String),
    Named(Vec<(Url, Result<Page, String>)>),
}

impl Gateways {
    pub(super) fn dates(&self) -> impl Iterator<Item = Date> {
        let pages = match self {
            Self::Named(pages) => pages.as_slice(),
            Self::Chosen { .. } | Self::Unnamed(_) => &[],
        };
        pages
            .iter()
            .filter_map(|(_, page)| page.as_ref().ok()?.date.clone())
    }
}

/// Asks every gateway at once.
pub(super) async fn ask(patient: &Patient<'_>) -> Gateways {
    if let GatewayChoice::Is(gateway) = &patient.spec.dstack.gateway_domain {
        let app_id = patient.seen.facts.app_id.as_ref().map(|fact| fact.value);
        let (host, port) = match gateway {
            Gateway::Fixed(at) => (at.host.to_string(), at.port),
            // Any name below the domain leads to the gateway.
            Gateway::Domain { domain, port } => {
                let app_id = app_id.map_or("app".to_owned(), |id| id.to_string());
                (format!("{app_id}-443s.{domain}"), *port)
            }
        };
        let at = format!("{host}:{port}");
        let connecting = tokio::time::timeout(web::PATIENCE, web::connect(&host, port)).await;
        let reached = match connecting {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{at}: {error}")),
            Err(_) => Err(format!("{at}: no answer within {}s", web::PATIENCE.as_secs())),
        };
        return Gateways::Chosen {
            gateway: gateway.clone(),
            reached,
        };
    }
    match host_shared::read(&patient.spec.dstack.host_shared_dir) {
        Err(error) => Gateways::Unnamed(error.to_string()),
        Ok(config) => {
            let pages = config.gateways.iter().map(async |url| {
                let mut info = url.clone();
                info.set_path(&format!("{}/prpc/Info", url.path().trim_end_matches('/')));
                web::get(&info, &[]).await
            });
            let pages = futures_util::future::join_all(pages).await;
            Gateways::Named(config.gateways.into_iter().zip(pages).collect())
        }
    }
}

pub(super) fn findings(
    patient: &Patient<'_>,
    gateways: &Gateways,
    root: Option<&CertificateDer<'static>>,
) -> Vec<Finding> {
    const UNREACHABLE: &str =
        "Other apps are reached through the gateway: without it no call leaves this machine.";
    match gateways {
        Gateways::Chosen {
            gateway,
            reached: Ok(()),
        } => {
            vec![Finding::ok(
                "gateway",
                format!("the gateway {gateway} (dstack.gateway_domain) takes connections"),
            )]
        }
        Gateways::Chosen {
            reached: Err(why), ..
        } => {
            vec![
                Finding::error("gateway", format!("the gateway cannot be reached: {why}"))
                    .why(UNREACHABLE)
                    .run("dstack-vpc explain dstack.gateway_domain")
                    .mend("correct it, or leave it out: then the host's gateways are asked"),
            ]
        }
        Gateways::Unnamed(why) => vec![
            Finding::error("gateway", why.clone())
                .why(UNREACHABLE)
                .mend(format!(
                    "in the app's compose file, add to this container: volumes: [\"{0}:{0}:ro\"]",
                    patient.spec.dstack.host_shared_dir.display()
                ))
                .mend("or name the gateway: DSTACK_GATEWAY_DOMAIN=apps.example.com:443"),
        ],
        Gateways::Named(pages) => {
            let one_told = pages.iter().any(|(url, page)| domain(url, page).is_ok());
            let finding = |(url, page): &(Url, _)| {
                of(url, page, root)
                    .into_iter()
                    .map(|f: Finding| f.milder(one_told))
            };
            pages
                .iter()
                .flat_map(|page| finding(page).collect::<Vec<_>>())
                .collect()
        }
    }
}

fn domain(url: &Url, page: &Result<Page, String>) -> Result<Gateway, String> {
    let page = page
        .as_ref()
        .map_err(|why| format!("{}: {why}{}", show(url), port_hint(url)))?;
    told(url, page.status, &page.body).map_err(|error| error.to_string())
}

fn of(url: &Url, page: &Result<Page, String>, root: Option<&CertificateDer<'static>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match domain(url, page) {
        Ok(gateway) => findings.push(Finding::ok(
            "gateway",
            format!("{} tells its domain, {gateway}", show(url)),
        )),
        Err(why) => {
            let finding = Finding::error("gateway", why).why(
                "Nobody else tells where other apps are reached, so no call can leave this machine until one gateway does.",
            );
            findings.push(match page {
                _ if url.port().is_none() => finding
                    .mend(format!(
                        "in .sys-config.json, have the host write \"https://{}:9202\"",
                        url.host_str().unwrap_or_default()
                    ))
                    .mend("or name the domain yourself: DSTACK_GATEWAY_DOMAIN=apps.example.com:443"),
                Ok(_) => finding
                    .mend("the gateway's operator has to configure its domain")
                    .mend("or name it yourself: DSTACK_GATEWAY_DOMAIN=apps.example.com:443"),
                Err(_) => finding
                    .run(format!(
                        "curl -k {}/prpc/Info   # from here, and from the host",
                        show(url)
                    ))
                    .mend("or name the domain yourself: DSTACK_GATEWAY_DOMAIN=apps.example.com:443"),
            });
        }
    }
    if let (Ok(Page { chain, .. }), Some(root)) = (page, root)
        && let [leaf, others @ ..] = chain.as_slice()
        && !ratls::leads_to(leaf, others, root, UnixTime::now())
    {
        findings.push(
            Finding::warning("gateway-certificate", format!("{}: its certificate is not of our KMS", show(url)))
                .why(
                    "A dstack gateway's certificate is signed by the KMS root. This one belongs to another KMS, or somebody \
                     sits between. Calls stay safe (each peer proves its app id); they may lead nowhere.",
                )
                .mend("ask the operator which KMS this gateway belongs to; it has to be the app's own"),
        );
    }
    findings
}

fn show(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}
