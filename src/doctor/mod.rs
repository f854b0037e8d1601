//! `dstack-vpc doctor`: looks at the machine, changes nothing, and says what will not work and how to mend it.
//!
//! Each file is a group of checks. Most look first and judge after, the judging being a pure function of what was
//! seen. What takes time (agent, gateways, servers) is asked at once and for a few seconds only.

mod clock;
mod disk;
mod gateway;
mod machine;
pub mod modules;
mod network;
mod platform;
mod programs;
mod server;
mod web;

use std::time::Duration;

use serde::Serialize;

use crate::facts::{self, Observed};
use crate::paths::StateDir;
use crate::reconcile::control::{AskError, Daemon};
use crate::reconcile::status::{ConditionKind, Status, Truth};
use crate::spec::{Loaded, Spec};

/// How long the agent and the gateways may take to say who we are; see also [`platform::PATIENCE`] and
/// [`web::PATIENCE`].
const PATIENCE: Duration = Duration::from_secs(5);

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable word for machines, such as `tun`, `gateway`, `clock`.
    pub check: &'static str,
    pub severity: Severity,
    /// One sentence.
    pub what: String,
    /// Why it matters. Empty for what is well.
    pub why: String,
    /// Commands or edits, one a line.
    pub mend: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something will not work.
    Error,
    /// It works, but not as it probably should, or not for long.
    Warning,
    /// Good to know.
    Note,
    /// Looked at and found well.
    Ok,
}

/// All findings, worst first; serialises as `doctor --json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// There is no error; warnings there may be.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        Self {
            ok: findings
                .first()
                .is_none_or(|worst| worst.severity != Severity::Error),
            findings,
        }
    }
}

impl Finding {
    fn new(check: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self {
            check,
            severity,
            what: what.into(),
            why: String::new(),
            mend: Vec::new(),
        }
    }

    fn error(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Severity::Error, what)
    }

    fn warning(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, what)
    }

    fn note(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Severity::Note, what)
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, what)
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// One more line that says how to mend it.
    fn mend(mut self, line: impl Into<String>) -> Self {
        self.mend.push(line.into());
        self
    }

    /// A warning instead where `mild`: something else makes up for it.
    fn milder(mut self, mild: bool) -> Self {
        if mild && self.severity == Severity::Error {
            self.severity = Severity::Warning;
        }
        self
    }
}

/// What every check may look at.
struct Patient<'a> {
    spec: &'a Spec,
    state: &'a StateDir,
    seen: &'a Observed,
    /// What the daemon says of itself, where one runs.
    daemon: Option<&'a Status>,
    /// The state directory is another user's: whether a daemon runs cannot be seen.
    stranger: bool,
}

impl Patient<'_> {
    /// The daemon found this program; our own `$PATH` may be another.
    fn daemon_found(&self, program: &str) -> bool {
        let facts = self.daemon.iter().flat_map(|status| &status.facts);
        let key = format!("programs.{program}");
        facts
            .into_iter()
            .any(|fact| fact.key == key && !fact.source.is_empty())
    }

    /// Whether a program of ours runs now.
    fn runs(&self, service: &str) -> bool {
        self.daemon
            .and_then(|status| status.services.get(service))
            .is_some_and(|service| service.state == "up")
    }

    /// The daemon or one of its programs.
    fn is_ours(&self, pid: u32) -> bool {
        self.daemon.is_some_and(|status| {
            status.pid == pid
                || (status.services.values()).any(|service| service.pid == i32::try_from(pid).ok())
        })
    }
}

/// Everything that can be said about this machine under this configuration, or why there is none.
///
/// `configuration` with its error is a finding, too; then only what needs no configuration is looked at.
pub async fn examine(configuration: Result<&Loaded, &str>, state: &StateDir) -> Report {
    let mut findings = disk::findings(state);
    let loaded = match configuration {
        Ok(loaded) => loaded,
        Err(why) => {
            findings.push(
                Finding::error("configuration", "the configuration cannot be used")
                    .why(format!(
                        "{why}\nA running daemon goes on with the last good one; what else there is to look at depends on it"
                    ))
                    .mend("dstack-vpc check"),
            );
            return Report::new(findings);
        }
    };
    findings.extend(warnings(loaded));
    let spec = &loaded.spec;
    let asking = Daemon(state);
    let (seen, asked, issued) = tokio::join!(
        facts::look(spec, state, PATIENCE),
        asking.status(),
        platform::issue(spec)
    );
    let stranger = disk::belongs_to_another(state);
    match stranger {
        Some(owner) => findings.push(
            Finding::warning(
                "user",
                format!("this is not the user of the state directory, who is {owner}"),
            )
            .why("What only that one may see, a running daemon above all, was not looked at.")
            .mend("sudo dstack-vpc doctor"),
        ),
        None => findings.push(daemon(state, asked.as_ref())),
    }
    let patient = Patient {
        spec,
        state,
        seen: &seen,
        daemon: asked.as_ref().ok(),
        stranger: stranger.is_some(),
    };
    let root = seen.identity.as_ref().map(|identity| &identity.root);
    let root = root.or(issued.root());
    let (gateways, server) = tokio::join!(gateway::ask(&patient), server::ask(&patient));
    findings.extend(platform::findings(&patient, &issued));
    findings.extend(gateway::findings(&patient, &gateways, root));
    findings.extend(programs::findings(&patient));
    findings.extend(machine::findings(&patient));
    findings.extend(network::findings(&patient));
    findings.extend(server::findings(&patient, &server));
    let dates = gateways.dates().chain(server.dates());
    findings.extend(clock::findings(state, dates));
    Report::new(findings)
}

/// What `check` warns of. The prefix has a finding of its own.
fn warnings(loaded: &Loaded) -> impl Iterator<Item = Finding> {
    let warnings = loaded
        .warnings
        .iter()
        .filter(|warning| warning.key.as_deref() != Some("vpn.prefix"));
    warnings.map(|warning| {
        let finding = Finding::warning("configuration", warning.message.clone())
            .why(warning.expected.clone().unwrap_or_default());
        match &warning.help {
            Some(help) => finding.mend(help.clone()),
            None => finding,
        }
    })
}

fn daemon(state: &StateDir, asked: Result<&Status, &AskError>) -> Finding {
    let status = match asked {
        Ok(status) => status,
        Err(error @ AskError::NotRunning(_)) => {
            return Finding::note("daemon", error.to_string())
                .why("What only a running machine can show was not looked at.");
        }
        Err(error) => {
            return Finding::error("daemon", error.to_string())
                .why("It accepts and does not answer: it hangs, or has been stopped.")
                .mend(format!(
                    "supervisorctl -c {}/supervisor/supervisord.conf restart dstack-vpc",
                    state.current().display()
                ));
        }
    };
    match status.condition(ConditionKind::Degraded) {
        Some(degraded) if degraded.holds() => {
            Finding::error("daemon", "the daemon says that not all is well")
                .why(degraded.message.clone())
                .mend("dstack-vpc status")
        }
        Some(degraded) if degraded.status == Truth::False => {
            Finding::ok("daemon", "the daemon runs, and everything is as configured")
        }
        _ => Finding::note("daemon", "the daemon is starting").mend("dstack-vpc status --watch"),
    }
}
