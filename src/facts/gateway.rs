//! The gateway's domain, asked of the gateways that the host names.
//!
//! The answer is routing information and no more: the host chose whom we ask. Where a name leads is checked
//! on each connection, by the peer's app id. So a gateway whose certificate cannot be verified is believed
//! too, and the fact says so.

use std::time::Duration;

use hyper::StatusCode;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use url::Url;

use super::Fact;
use crate::http::{self, Trust};
use crate::names::{DnsName, NotA};
use crate::ratls;
use crate::spec::Gateway;

/// For one gateway, from name to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

const MAX_ANSWER: usize = 64 << 10;

/// Where gateways usually answer `/prpc/Info`.
const USUAL_PORT: u16 = 9202;

/// Why no gateway told its domain: each with its own reason.
#[derive(Debug, thiserror::Error)]
#[error("no gateway told its domain: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub(super) struct NoAnswer(Vec<AskError>);

/// Why one gateway told nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{url}: no answer within {}s{}", TIMEOUT.as_secs(), port_hint(url))]
    Timeout { url: Url },
    #[error("{url}: {why}{}", port_hint(url))]
    Unreachable { url: Url, why: String },
    #[error("{url}/prpc/Info answered with status {status}{}", port_hint(url), url = .url.as_str().trim_end_matches('/'))]
    Status { url: Url, status: StatusCode },
    #[error("{url}: the answer is not that of a gateway: {why}{}", port_hint(url))]
    Malformed { url: Url, why: String },
    /// `base_domain` is empty or the port is 0.
    #[error("{url}: the gateway has no domain yet; its operator must configure one")]
    Unconfigured { url: Url },
}

/// Asks one gateway after the other; the first one that tells a domain is believed.
///
/// `root` is the KMS root when it is known.
pub(super) async fn ask(
    gateways: &[Url],
    root: Option<&CertificateDer<'static>>,
) -> Result<Fact<Gateway>, NoAnswer> {
    let mut failures = Vec::new();
    for url in gateways {
        let asked = tokio::time::timeout(TIMEOUT, ask_one(url, root)).await;
        match asked.unwrap_or_else(|_| Err(AskError::Timeout { url: url.clone() })) {
            Ok((gateway, verified)) => {
                let unverified = if verified { "" } else { " (unverified)" };
                let url = url.as_str().trim_end_matches('/');
                return Ok(Fact::now(gateway, format!("gateway {url}{unverified}")));
            }
            Err(failure) => failures.push(failure),
        }
    }
    Err(NoAnswer(failures))
}

/// The domain, and whether the gateway's certificate leads to `root`.
async fn ask_one(url: &Url, root: Option<&CertificateDer<'static>>) -> Result<(Gateway, bool), AskError> {
    let mut info = url.clone();
    info.set_path(&format!("{}/prpc/Info", url.path().trim_end_matches('/')));
    info.set_query(None);
    let asked = http::get(&info, Trust::Anyone, MAX_ANSWER).await;
    let (status, body, chain) = asked.map_err(|why| AskError::Unreachable {
        url: url.clone(),
        why: why.to_string(),
    })?;
    let verified = root
        .zip(chain.split_first())
        .is_some_and(|(root, (leaf, others))| ratls::leads_to(leaf, others, root, UnixTime::now()));
    Ok((told(url, status, &body)?, verified))
}

/// The domain in an answer to `/prpc/Info`.
pub(crate) fn told(url: &Url, status: StatusCode, body: &[u8]) -> Result<Gateway, AskError> {
    if status != StatusCode::OK {
        return Err(AskError::Status {
            url: url.clone(),
            status,
        });
    }
    #[derive(Deserialize)]
    struct Answer {
        base_domain: String,
        external_port: u32,
    }
    let malformed = |why: String| AskError::Malformed {
        url: url.clone(),
        why,
    };
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| malformed("expected JSON with base_domain and external_port".to_owned()))?;
    if answer.base_domain.is_empty() || answer.external_port == 0 {
        return Err(AskError::Unconfigured { url: url.clone() });
    }
    let domain: DnsName = answer
        .base_domain
        .trim_end_matches('.')
        .parse()
        .map_err(|e: NotA| malformed(format!("base_domain: {e}")))?;
    let port = answer
        .external_port
        .try_into()
        .map_err(|_| malformed("external_port is no port".to_owned()))?;
    Ok(Gateway::Domain { domain, port })
}

/// A URL without a port means 443 or 80, where gateways usually do not answer this.
pub(crate) fn port_hint(url: &Url) -> String {
    match url.port() {
        Some(_) => String::new(),
        None => format!(
            " (the URL has no port; gateways usually answer on {USUAL_PORT}: should it be https://{}:{USUAL_PORT}?)",
            url.host_str().unwrap_or_default()
        ),
    }
}
