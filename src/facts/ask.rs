//! One attempt at each fact, and how its result becomes part of what is observed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::{Fact, IdentityFiles, Observed, Problem, Topic, gateway, host_shared, remember};
use crate::agent::{self, AgentClient, Discovered, Info};
use crate::identity::{self, Identity, Stored};
use crate::paths::StateDir;
use crate::spec::{AgentAddr, AgentChoice, Gateway, GatewayChoice, Spec};

/// The source of a gateway that the spec names.
pub(super) const CHOSEN: &str = "dstack.gateway_domain";

/// The agent's address as far as it is known, and its answer or why there is none.
pub(super) struct AgentAnswer {
    pub(super) addr: Option<Fact<AgentAddr>>,
    pub(super) info: Result<Info, String>,
}

/// Finds the agent and asks it who we are.
pub(super) async fn ask_agent(spec: &Spec) -> AgentAnswer {
    match agent::discover(&spec.dstack.agent) {
        Ok(discovered) => {
            let at = found(discovered);
            let client = AgentClient::new(at.value.clone(), spec.dstack.agent_timeout);
            AgentAnswer {
                info: client.info().await.map_err(|e| e.to_string()),
                addr: Some(at),
            }
        }
        Err(e) => AgentAnswer {
            addr: None,
            info: Err(e.to_string()),
        },
    }
}

/// The gateway that the spec names, else the one that the host's gateways tell.
pub(super) async fn ask_gateway(
    spec: &Spec,
    root: Option<&CertificateDer<'static>>,
) -> Result<Fact<Gateway>, String> {
    if let Some(gateway) = chosen_gateway(spec) {
        return Ok(gateway);
    }
    let config = host_shared::read(&spec.dstack.host_shared_dir).map_err(|e| e.to_string())?;
    gateway::ask(&config.gateways, root)
        .await
        .map_err(|e| e.to_string())
}

fn found(agent: Discovered) -> Fact<AgentAddr> {
    Fact::now(agent.addr, agent.source)
}

/// The gateway, when nobody needs to be asked for it.
pub(super) fn chosen_gateway(spec: &Spec) -> Option<Fact<Gateway>> {
    match &spec.dstack.gateway_domain {
        GatewayChoice::Is(gateway) => Some(Fact::now(gateway.clone(), CHOSEN)),
        GatewayChoice::Auto => None,
    }
}

impl Observed {
    /// What is known without asking anybody: the spec's own words, the memory, and the stored certificate with when
    /// that was obtained.
    pub(super) fn recalled(spec: &Spec, state: &StateDir) -> (Self, Option<SystemTime>) {
        let mut observed = Self::default();
        remember::recall(state, &mut observed.facts);
        observed.recall_derp_map(state);
        observed.facts.agent = agent::discover(&spec.dstack.agent).ok().map(found);
        observed = observed.under(spec);
        let instance_id = observed.facts.instance_id.as_ref().map(|fact| fact.value);
        match identity::load(state, instance_id, SystemTime::now()) {
            Ok(None) => (observed, None),
            Ok(Some(Stored { identity, obtained })) => {
                if let Some(app_id) = identity.app_id {
                    let source = format!("{}the stored certificate", remember::REMEMBERED);
                    observed.facts.app_id = Some(Fact {
                        value: app_id,
                        source,
                        at: obtained,
                    });
                }
                observed.take_identity(Arc::new(identity), "stored", obtained);
                (observed, Some(obtained))
            }
            Err(e) => {
                observed.set_problem(Topic::Identity, Some(e.to_string()), None);
                (observed, None)
            }
        }
    }

    /// The same under another spec: what that names outright counts at once, before its keeper has noticed.
    #[must_use]
    pub fn under(mut self, spec: &Spec) -> Self {
        if let AgentChoice::At(addr) = &spec.dstack.agent
            && self.facts.agent.as_ref().is_none_or(|agent| agent.value != *addr)
        {
            self.facts.agent = agent::discover(&spec.dstack.agent).ok().map(found);
        }
        match chosen_gateway(spec) {
            Some(gateway) => self.facts.gateway = Some(gateway),
            None => drop(self.facts.gateway.take_if(|gateway| gateway.source == CHOSEN)),
        }
        self
    }

    /// A fact that was known stays when the agent fails. A certificate of another app does not stay.
    pub(super) fn take_agent(&mut self, answer: AgentAnswer, retry_in: Option<Duration>) {
        let Self { facts, identity, .. } = self;
        if let Ok(info) = &answer.info {
            let source = match &answer.addr {
                Some(addr) => format!("guest agent at {}", addr.value),
                None => String::new(),
            };
            facts.app_id = Some(Fact::now(info.app_id, &source));
            facts.instance_id = info.instance_id.map(|id| Fact::now(id, &source));
            if identity
                .as_ref()
                .is_some_and(|it| it.app_id.is_some_and(|app_id| app_id != info.app_id))
            {
                *identity = None;
                facts.identity = None;
            }
        }
        facts.agent = answer.addr;
        self.set_problem(Topic::Agent, answer.info.err(), retry_in);
    }

    pub(super) fn take_gateway(&mut self, answer: Result<Fact<Gateway>, String>, retry_in: Option<Duration>) {
        match answer {
            Ok(gateway) => {
                self.facts.gateway = Some(gateway);
                self.set_problem(Topic::Gateway, None, None);
            }
            Err(message) => {
                // One that the spec named stands no longer: there it would have been no question.
                self.facts.gateway.take_if(|gateway| gateway.source == CHOSEN);
                self.set_problem(Topic::Gateway, Some(message), retry_in);
            }
        }
    }

    pub(super) fn take_identity(&mut self, identity: Arc<Identity>, source: &str, at: SystemTime) {
        self.facts.identity = Some(Fact {
            value: IdentityFiles {
                dir: identity.dir.clone(),
            },
            source: source.to_owned(),
            at,
        });
        let problem = identity.app_id.is_none().then(|| NO_KMS.to_owned());
        self.identity = Some(identity);
        self.set_problem(Topic::Identity, problem, None);
    }

    /// `None` is the end of the problem.
    pub(super) fn set_problem(&mut self, what: Topic, message: Option<String>, retry_in: Option<Duration>) {
        let now = SystemTime::now();
        let since = self
            .problems
            .iter()
            .find(|p| p.what == what)
            .map_or(now, |p| p.since);
        self.problems.retain(|p| p.what != what);
        if let Some(message) = message {
            let retry_at = retry_in.map(|wait| now + wait);
            self.problems.push(Problem {
                what,
                message,
                since,
                retry_at,
            });
            self.problems.sort_by_key(|p| p.what);
        }
    }

    /// The problem with `what`, if there is one.
    pub fn problem(&self, what: Topic) -> Option<&Problem> {
        self.problems.iter().find(|p| p.what == what)
    }

    /// Something that anybody would act on is different: a value, whether it is merely remembered, or a problem.
    /// Ages, sources and the times of next attempts are not.
    pub fn differs_from(&self, other: &Self) -> bool {
        fn values<'a>(o: &'a Observed) -> impl PartialEq + use<'a> {
            fn value<T>(fact: &Option<Fact<T>>) -> Option<(&T, bool)> {
                fact.as_ref().map(|fact| (&fact.value, fact.is_remembered()))
            }
            let (f, p) = (&o.facts, &o.facts.programs);
            (
                (
                    value(&f.agent),
                    value(&f.app_id),
                    value(&f.instance_id),
                    value(&f.gateway),
                    value(&f.identity),
                    // The same map means the same, remembered or not.
                    f.derp_map.as_ref().map(|fact| &fact.value),
                ),
                (
                    value(&p.nginx),
                    value(&p.supervisord),
                    value(&p.headscale),
                    value(&p.tailscaled),
                    value(&p.tailscale),
                    &f.host,
                    f.plain_headscale,
                ),
                o.problems
                    .iter()
                    .map(|p| (p.what, &p.message))
                    .collect::<Vec<_>>(),
            )
        }
        values(self) != values(other)
    }
}

const NO_KMS: &str = "the certificate was made without a KMS: it carries no app id, so no other app can be called or can \
                      call this one. Deploy the app with a KMS";
