//! The guest agent, the KMS behind it, and the certificate that comes of both.

use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::CertificateDer;

use super::{Finding, Patient};
use crate::agent::{self, AgentClient, AgentError, NoAgent};
use crate::facts::Topic;
use crate::identity::{self, CheckError, Checked, FetchError};
use crate::ratls::ChainError;
use crate::spec::{AgentAddr, Spec};
use crate::words::span;

/// For one certificate: with a KMS it goes over the network.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A KMS that is well answers faster.
const SLOW: Duration = Duration::from_secs(3);

/// A certificate that was asked for and thrown away, or why there was none.
pub(super) enum Issued {
    NoAgent(NoAgent),
    Asked {
        agent: AgentAddr,
        took: Duration,
        answer: Box<Result<Checked, FetchError>>,
    },
}

impl Issued {
    pub(super) fn root(&self) -> Option<&CertificateDer<'static>> {
        self.checked().map(|checked| &checked.root)
    }

    fn checked(&self) -> Option<&Checked> {
        match self {
            Self::Asked { answer, .. } => answer.as_ref().as_ref().ok(),
            Self::NoAgent(_) => None,
        }
    }
}

/// Asks the agent for a certificate, which is not kept.
pub(super) async fn issue(spec: &Spec) -> Issued {
    let agent = match agent::discover(&spec.dstack.agent) {
        Ok(found) => found.addr,
        Err(none) => return Issued::NoAgent(none),
    };
    let client = AgentClient::new(agent.clone(), PATIENCE.min(spec.dstack.agent_timeout));
    let begun = Instant::now();
    // Whether it is our own app's is seen from what `Info` tells.
    let answer = identity::fetch(&client, None, &spec.identity).await;
    Issued::Asked {
        agent,
        took: begun.elapsed(),
        answer: Box::new(answer),
    }
}

pub(super) fn findings(patient: &Patient<'_>, issued: &Issued) -> Vec<Finding> {
    let (agent, took, answer) = match issued {
        Issued::NoAgent(none) => return vec![no_agent(none)],
        Issued::Asked { agent, took, answer } => (agent, *took, answer.as_ref()),
    };
    let mut findings = Vec::new();
    let agent_problem = patient.seen.problem(Topic::Agent);
    if let Some(problem) = agent_problem {
        findings.push(agent_fails(agent, &problem.message, answer.as_ref().err()));
    } else {
        findings.push(Finding::ok(
            "agent",
            format!("the guest agent at {agent} answers"),
        ));
    }
    match answer {
        Ok(checked) => findings.push(issues(patient, checked, took)),
        // It was said already that the agent itself fails.
        Err(FetchError::Agent(_)) if agent_problem.is_some() => {}
        Err(FetchError::Agent(error)) => findings.push(kms_fails(patient, agent, error)),
        Err(FetchError::Refused(error)) => findings.push(refused(patient, agent, error)),
    }
    findings.extend(stored(patient, issued.checked()));
    findings
}

const MOUNT: &str = "in the app's compose file, add to this container:";

fn no_agent(none: &NoAgent) -> Finding {
    let finding = Finding::error("agent", none.to_string()).why(
        "The guest agent tells who this machine is and issues its certificate: without it nothing can be called, and \
         nobody can call this machine.",
    );
    match none {
        NoAgent::NoSocket { .. } => finding
            .mend(format!(
                "{MOUNT} volumes: [\"/var/run/dstack.sock:/var/run/dstack.sock\"]"
            ))
            .mend("on a laptop, with dstack.agent = \"unix:/tmp/dstack.sock\":")
            .run("dstack-vpc dev-agent --listen unix:/tmp/dstack.sock"),
        NoAgent::BadSimulator { .. } => finding.run(format!("unset {}", agent::SIMULATOR_VARIABLE)),
    }
}

fn agent_fails(agent: &AgentAddr, message: &str, error: Option<&FetchError>) -> Finding {
    let finding = Finding::error("agent", message).why(
        "While it does not answer, no certificate can be had or renewed. A socket file that was mounted by itself stays \
         the old one when the agent makes a new one.",
    );
    match (error, agent) {
        (Some(FetchError::Agent(AgentError::NotFound { .. })), AgentAddr::Unix(path)) => finding
            .mend(format!(
                "{MOUNT} volumes: [\"/var/run/dstack.sock:{}\"]",
                path.display()
            ))
            .mend("or is it elsewhere? Where it is said:")
            .run("dstack-vpc explain dstack.agent"),
        (Some(FetchError::Agent(AgentError::Denied { .. })), AgentAddr::Unix(path)) => finding
            .mend("run dstack-vpc as root, or let others use the socket:")
            .run(format!("chmod o+rw {}", path.display())),
        (Some(FetchError::Agent(AgentError::Refused { .. })), AgentAddr::Unix(path)) => finding
            .mend(format!(
                "nobody listens on {}; on the machine itself:",
                path.display()
            ))
            .run("systemctl restart dstack-guest-agent")
            .mend("then restart this container, or mount the socket's folder instead of the socket"),
        _ => finding.run(see(agent, "Info")),
    }
}

/// The agent answers, but has no certificate for us.
fn kms_fails(patient: &Patient<'_>, agent: &AgentAddr, error: &AgentError) -> Finding {
    let what = match error {
        AgentError::Timeout { after, .. } => format!(
            "the KMS is too slow: the guest agent answers, but had no certificate within {}s",
            after.as_secs()
        ),
        _ => format!("the KMS fails: {error}"),
    };
    Finding::error("kms", what)
        .why(format!(
            "The guest agent gets certificates from the KMS over the network. It is tried again and again.{}",
            meanwhile(patient)
        ))
        .milder(patient.seen.identity.is_some())
        .run(see(agent, "GetTlsKey?subject=localhost&usage_server_auth=true"))
        .run(format!(
            "grep kms_urls {}",
            patient
                .spec
                .dstack
                .host_shared_dir
                .join(".sys-config.json")
                .display()
        ))
        .mend("then the guest agent's own log on the platform, and whoever runs that KMS")
}

fn refused(patient: &Patient<'_>, agent: &AgentAddr, error: &CheckError) -> Finding {
    if let CheckError::Chain(ChainError::Expired { .. } | ChainError::NotYetValid { .. }) = error {
        return Finding::error(
            "clock",
            format!("a certificate that was issued just now: {error}"),
        )
        .why("The clock of this machine and that of the KMS differ, so peers refuse each other.")
        .run("date -u")
        .mend("then mend the clock of the host");
    }
    let finding = Finding::error(
        "chain",
        format!("the guest agent's certificate is refused: {error}"),
    )
    .why(format!(
        "Peers would refuse it as well, as `UnknownIssuer` or `untrusted_chain`, so it is not used.{}",
        meanwhile(patient)
    ))
    .milder(patient.seen.identity.is_some());
    match error {
        CheckError::Untrusted { .. } => finding
            .mend("deploy the app with another version of the platform's image")
            .mend("what came of it:")
            .run(see(agent, "GetTlsKey?subject=localhost&usage_server_auth=true")),
        _ => finding
            .mend("deploy the app anew; if that does not help, with another version of the platform's image"),
    }
}

fn issues(patient: &Patient<'_>, checked: &Checked, took: Duration) -> Finding {
    let told = patient.seen.facts.app_id.as_ref().map(|fact| fact.value);
    match (checked.app_id, told) {
        (None, _) => Finding::error("kms", "certificates carry no app id: this app was deployed without a KMS")
            .why("The app id in the certificate is how apps know each other: none can be called, and none can call this one.")
            .mend("deploy the app with a KMS (in its app compose: \"kms_enabled\": true)"),
        (Some(issued), Some(told)) if issued != told => Finding::error(
            "chain",
            format!("the guest agent says that this is the app {told}, and issues certificates for the app {issued}"),
        )
        .why("Such a certificate is not used: peers would take this machine for another app.")
        .mend("deploy the app anew"),
        _ if took > SLOW => Finding::warning(
            "kms",
            format!("the KMS is slow: a certificate took {:.1}s", took.as_secs_f64()),
        )
        .why("Starting takes that much longer, and at some point the agent's own time limit is over.")
        .mend("raise dstack.agent_timeout if it says so; whoever runs the KMS can tell why"),
        _ => Finding::ok("kms", format!("the KMS issues certificates, within {} ms", took.as_millis())),
    }
}

/// The certificate that is in use.
fn stored(patient: &Patient<'_>, fresh: Option<&Checked>) -> Option<Finding> {
    let now = SystemTime::now();
    match identity::load(patient.state, None, now) {
        Ok(None) => None,
        Ok(Some(stored)) => {
            let stored = stored.identity;
            if fresh.is_some_and(|fresh| fresh.root != stored.root) {
                return Some(
                    Finding::warning("chain", "the KMS root has changed since the stored certificate was issued")
                        .why("Apps whose certificates are from the former KMS and this one refuse each other as `UnknownIssuer`.")
                        .run("dstack-vpc renew   # on every machine of the VPC"),
                );
            }
            let left = stored.not_after.duration_since(now).unwrap_or_default();
            Some(Finding::ok(
                "identity",
                format!("the stored certificate is valid for {} more", span(left)),
            ))
        }
        Err(error) => {
            let expired_or_early = error.to_string();
            Some(
                Finding::error("identity", expired_or_early)
                    .why("It is replaced as soon as the guest agent issues another.")
                    .milder(fresh.is_some())
                    .run("dstack-vpc renew"),
            )
        }
    }
}

fn meanwhile(patient: &Patient<'_>) -> String {
    let left = patient
        .seen
        .identity
        .as_ref()
        .and_then(|identity| identity.not_after.duration_since(SystemTime::now()).ok());
    match left {
        Some(left) => format!(" The stored certificate is valid for {} more.", span(left)),
        None => " Until there is one, other apps cannot be called or call this one.".to_owned(),
    }
}

/// How to ask the agent by hand. The answer can be a key: it is not shown.
fn see(agent: &AgentAddr, call: &str) -> String {
    let curl = "curl -sS -o /dev/null -w '%{http_code} after %{time_total}s\\n'";
    match agent {
        AgentAddr::Unix(path) => format!("{curl} --unix-socket {} 'http://dstack/{call}'", path.display()),
        AgentAddr::Http(at) => format!("{curl} 'http://{at}/{call}'"),
    }
}
