//! A fresh certificate from the guest agent.

use std::time::{Duration, SystemTime};

use super::check::{CheckError, Checked, check};
use crate::agent::{AgentClient, AgentError, TlsKeyRequest};
use crate::names::AppId;
use crate::spec::IdentityPolicy;

/// Clocks of machines differ by less.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A far-future end crashed one version of the agent; ten years is what a KMS gives by itself.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One shorter is mostly over when it is in use everywhere.
const SHORTEST: Duration = Duration::from_secs(3600);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the certificate from the guest agent is refused: {0}")]
    Refused(#[from] CheckError),
}

/// Asks the agent for a key and chain and checks them; nothing is written.
///
/// `app_id` is what the agent's `Info` told; the certificate must carry the same.
pub async fn fetch(
    agent: &AgentClient,
    app_id: Option<AppId>,
    policy: &IdentityPolicy,
) -> Result<Checked, FetchError> {
    let now = SystemTime::now();
    let answer = agent
        .get_tls_key(&TlsKeyRequest {
            // A label for people; nothing is authorised by it.
            subject: app_id.map_or_else(|| "localhost".to_owned(), |id| id.to_string()),
            alt_names: Vec::new(),
            usage_ra_tls: false,
            usage_server_auth: true,
            usage_client_auth: true,
            not_before: Some(now - BACKDATED),
            not_after: Some(now + policy.lifetime.clamp(SHORTEST, LONGEST)),
        })
        .await?;
    Ok(check(
        &answer.key,
        &answer.certificate_chain.join("\n"),
        app_id,
        SystemTime::now(),
    )?)
}
