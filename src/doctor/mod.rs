//! `dstack-vpc doctor`: looks at the machine, changes nothing, and says what will not work and how to mend it.
//!
//! Each file is a group of checks. Most look first and judge after, the judging being a pure function of what was
//! seen. What takes time (agent, gateways, servers, apps) is asked at once and for a few seconds only.

mod apps;
mod clock;
mod disk;
mod exposed;
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
use utoipa::ToSchema;

use crate::apply::Real;
use crate::facts::{self, Observed, process};
use crate::paths::StateDir;
use crate::reconcile::control::{AskError, Daemon};
use crate::reconcile::status::{ConditionKind, Status, Truth};
use crate::spec::{Loaded, Spec};

/// How long the agent and the gateways may take to say who we are; see also [`platform::PATIENCE`] and
/// [`web::PATIENCE`].
const PATIENCE: Duration = Duration::from_secs(5);

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Finding {
    /// A stable word for machines, such as `tun`, `gateway`, `clock`.
    pub check: &'static str,
    pub severity: Severity,
    /// One sentence.
    pub what: String,
    /// Why it matters. Empty for what is well.
    pub why: String,
    /// What mends it, in this order.
    pub mend: Vec<Mend>,
}

/// One step of what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mend {
    /// A command for a shell.
    Run(String),
    /// Advice, or what to write into a file.
    Do(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
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

/// All findings, worst first, as `doctor --json` prints them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Report {
    /// There is no error; warnings there may be.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

/// The JSON schema of [`Report`].
pub fn report_schema() -> serde_json::Value {
    crate::schema::of::<Report>()
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
            what: without_numbers(&what.into()),
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

    /// One more piece of advice on how to mend it.
    fn mend(self, advice: impl Into<String>) -> Self {
        self.step(Mend::Do(advice.into()))
    }

    /// One more command that mends it, or that shows more.
    fn run(self, command: impl Into<String>) -> Self {
        self.step(Mend::Run(command.into()))
    }

    fn step(mut self, step: Mend) -> Self {
        self.mend.push(step);
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
    /// The pid of ours, where it runs.
    supervisord: Option<u32>,
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

    /// The daemon or one of its programs, also where no daemon answers.
    fn is_ours(&self, pid: u32) -> bool {
        let told = self.daemon.is_some_and(|status| {
            status.pid == pid
                || (status.services.values()).any(|service| service.pid == i32::try_from(pid).ok())
        });
        let parent = process::look(pid).map(|it| it.parent);
        told || self.supervisord.is_some() && parent == self.supervisord
    }
}

/// The system's words for an error come with its number, which tells nobody anything.
fn without_numbers(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut parts = text.split(NUMBER);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once(')').map_or("", |(_, rest)| rest)
    })
}

/// Everything that can be said about this machine under this configuration, or why there is none.
///
/// `configuration` with its error is a finding, too; then only what needs no configuration is looked at.
pub async fn examine(configuration: Result<&Loaded, &str>, state: &StateDir) -> Report {
    let role = configuration.ok().map(|loaded| loaded.spec.role);
    let mut findings = disk::findings(state, role);
    let loaded = match configuration {
        Ok(loaded) => loaded,
        Err(why) => {
            findings.push(unusable(why));
            return Report::new(findings);
        }
    };
    findings.extend(warnings(loaded));
    let spec = &loaded.spec;
    let asking = Daemon(state);
    let machine = Real::new(state, None);
    let (seen, asked, issued, supervisord) = tokio::join!(
        facts::look(spec, state, PATIENCE),
        asking.status(),
        platform::issue(spec),
        machine.supervisord()
    );
    let supervisord = supervisord.and_then(|pid| u32::try_from(pid).ok());
    let stranger = disk::belongs_to_another(state);
    match stranger {
        Some(owner) => findings.push(
            Finding::warning(
                "user",
                format!("this is not the user of the state directory, who is {owner}"),
            )
            .why("What only that one may see, a running daemon above all, was not looked at.")
            .run("sudo dstack-vpc doctor"),
        ),
        None => findings.push(daemon(state, asked.as_ref(), supervisord.is_some())),
    }
    let patient = Patient {
        spec,
        state,
        seen: &seen,
        daemon: asked.as_ref().ok(),
        supervisord,
        stranger: stranger.is_some(),
    };
    let root = seen.identity.as_ref().map(|identity| &identity.root);
    let root = root.or(issued.root());
    let (gateways, server, apps, exposed) = tokio::join!(
        gateway::ask(&patient),
        server::ask(&patient),
        apps::ask(&patient),
        exposed::ask(&patient)
    );
    findings.extend(platform::findings(&patient, &issued));
    findings.extend(gateway::findings(&patient, &gateways, root));
    findings.extend(programs::findings(&patient));
    findings.extend(machine::findings(&patient));
    findings.extend(network::findings(&patient));
    findings.extend(server::findings(&patient, &server));
    findings.extend(apps::findings(apps));
    findings.extend(exposed::findings(&patient, exposed));
    let dates = gateways.dates().chain(server.dates());
    findings.extend(clock::findings(state, dates));
    Report::new(findings)
}

/// `check` shows all of it, with the lines of the file.
fn unusable(why: &str) -> Finding {
    let mut errors = why.lines().filter_map(|line| line.strip_prefix("error: "));
    let first = errors.next().or(why.lines().next()).unwrap_or_default();
    let more = match errors.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Finding::error(
        "configuration",
        format!("the configuration cannot be used: {first}{more}"),
    )
    .why("A running daemon goes on with the last good one. What else there is to look at depends on it.")
    .run("dstack-vpc check")
}

/// What `check` warns of. The prefix has a finding of its own.
fn warnings(loaded: &Loaded) -> impl Iterator<Item = Finding> {
    let warnings = loaded
        .warnings
        .iter()
        .filter(|warning| warning.key.as_deref() != Some("vpn.prefix"));
    warnings.map(|warning| {
        let mut finding = Finding::warning("configuration", warning.message.clone())
            .why(warning.expected.clone().unwrap_or_default());
        if let Some(help) = &warning.help {
            finding = finding.mend(help.clone());
        }
        match &warning.key {
            Some(key) => finding.run(format!("dstack-vpc explain {key}   # where it is said")),
            None => finding,
        }
    })
}

fn daemon(state: &StateDir, asked: Result<&Status, &AskError>, supervised: bool) -> Finding {
    let supervisorctl = format!(
        "supervisorctl -c {}/supervisor/supervisord.conf",
        state.current().display()
    );
    let status = match asked {
        Ok(status) => status,
        Err(AskError::NotRunning(_)) if supervised => {
            return Finding::error("daemon", "supervisord runs, and the daemon does not")
                .why("What serves goes on; calls to other apps do not, and no edit is followed.")
                .run(format!("{supervisorctl} status dstack-vpc"))
                .run(format!("{supervisorctl} start dstack-vpc"))
                .mend("the container's log, or <state>/log, says why it ended");
        }
        Err(error @ AskError::NotRunning(_)) => {
            return Finding::note("daemon", error.to_string())
                .why("What only a running machine can show was not looked at.");
        }
        Err(error) => {
            return Finding::error("daemon", error.to_string())
                .why("It accepts and does not answer: it hangs, or has been stopped.")
                .run(format!("{supervisorctl} restart dstack-vpc"));
        }
    };
    match status.condition(ConditionKind::Degraded) {
        Some(degraded) if degraded.holds() => {
            Finding::error("daemon", "the daemon says that not all is well")
                .why(degraded.message.clone())
                .run("dstack-vpc status")
        }
        Some(degraded) if degraded.status == Truth::False => {
            Finding::ok("daemon", "the daemon runs, and everything is as configured")
        }
        _ => Finding::note("daemon", "the daemon is starting").run("dstack-vpc status --watch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_error_is_left_out_and_nothing_else() {
        for (text, told) in [
            ("a: refused (os error 111)", "a: refused"),
            ("a (os error 2), b (os error 3); c (d)", "a, b; c (d)"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(without_numbers(text), told);
        }
    }

    #[test]
    fn the_worst_comes_first_and_one_error_is_enough() {
        let (ok, error) = (Finding::ok("a", "well"), Finding::error("b", "not well"));
        let report = Report::new(vec![ok.clone(), error.clone()]);
        assert!(!report.ok);
        assert_eq!(report.findings, [error, ok.clone()]);
        assert!(Report::new(vec![ok]).ok);
    }
}
