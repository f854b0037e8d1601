//! A plan for people (prose and diffs) and for machines (JSON).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::secrets::hide;
use super::{ActionKind, Cause, FileChange, Plan, changes};
use crate::desired::{EFFECTIVE, Program, Reader};

/// What would be done and why, as `plan --json` prints it; the prose is made from this and nothing else. Secrets are not in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Whether there is anything to do.
    pub changes: bool,
    /// Whether somebody who is served now is interrupted, or will not be served any more.
    pub disturbs: bool,
    /// What differs from what the live generation was made from; what disturbs somebody comes first.
    pub causes: Vec<Cause>,
    /// What is done to the programs, in this order.
    pub actions: Vec<ActionReport>,
    pub files: Vec<FileReport>,
    /// What cannot run, and what is left alone on purpose.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileReport {
    /// Below the generation's folder.
    pub path: String,
    /// `added`, `changed`, `removed`, `mode` (nothing in it is changed)
    pub change: String,
    /// Unified.
    pub diff: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ActionReport {
    /// `listeners` (the daemon's own), `supervisord`, or the program's name.
    pub target: String,
    pub action: String,
    /// The causes, or what else makes it necessary.
    pub reason: String,
    /// What traffic notices.
    pub effect: String,
    /// Somebody who is served now has to wait, or to connect anew.
    pub interrupts: bool,
}

/// The JSON schema of [`Report`].
pub fn report_schema() -> serde_json::Value {
    crate::schema::of::<Report>()
}

impl From<&Plan> for Report {
    fn from(plan: &Plan) -> Self {
        let update = programs(plan);
        let actions: Vec<_> = plan
            .actions
            .iter()
            .map(|action| {
                let (target, verb, effect) = words(action.kind);
                let is_anew = update.as_ref().is_some_and(|it| it.restarted.contains(target));
                let (effect, interrupts) = match (action.kind, &update) {
                    (ActionKind::UpdateSupervisor, Some(it)) => (it.said.clone(), it.interrupts),
                    _ if is_anew => (
                        "supervisord starts it anew before, so it need not be told".to_owned(),
                        false,
                    ),
                    (ActionKind::RestartNginx | ActionKind::RestartHeadscale, _) => (effect.to_owned(), true),
                    _ => (effect.to_owned(), false),
                };
                ActionReport {
                    target: target.to_owned(),
                    action: verb.to_owned(),
                    reason: action.reason.clone(),
                    effect,
                    interrupts,
                }
            })
            .collect();
        let mut causes = plan.causes.clone();
        causes.sort_by_key(|cause| !cause.breaks);
        Self {
            changes: !plan.is_empty(),
            disturbs: causes.iter().any(|cause| cause.breaks) || actions.iter().any(|it| it.interrupts),
            causes,
            files: plan.files.iter().map(file).collect(),
            actions,
            notes: plan.missing.iter().chain(&plan.notes).cloned().collect(),
        }
    }
}

/// What differs between the files of two generations, by path; as in a plan, without secrets.
pub(crate) fn differences(
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
) -> Vec<FileReport> {
    changes(before, after).iter().map(file).collect()
}

/// Where nginx.conf names itself.
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let answer =
        r#"(location = /\.dstack-vpc/generation \{\s+keepalive_timeout 0;\s+return 200 ")[0-9a-f]{16}(";)"#;
    Regex::new(answer).expect("a constant that is tested")
});

fn file(change: &FileChange) -> FileReport {
    let text = |bytes: &Option<Vec<u8>>| {
        bytes
            .as_ref()
            .map(|b| visible(&String::from_utf8_lossy(b)))
            .unwrap_or_default()
    };
    let (before, known) = hide(&text(&change.before), None);
    let (after, _) = hide(&text(&change.after), change.before.as_ref().map(|_| &known));
    // The tag differs whenever anything does; what it is tells nobody anything.
    let untagged = |text: &str| TAG.replace_all(text, "$1(tag)$2").into_owned();
    let (before, after) = match (untagged(&before), untagged(&after)) {
        (same, as_same) if same == as_same => (before, after),
        untagged => untagged,
    };
    let diff = similar::TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(2)
        .header(&format!("live/{}", change.path), &format!("new/{}", change.path))
        .to_string();
    FileReport {
        path: change.path.clone(),
        change: match (&change.before, &change.after) {
            (None, _) => "added",
            (_, None) => "removed",
            _ if change.is_of_mode() => "mode",
            _ => "changed",
        }
        .to_owned(),
        diff,
    }
}

/// What an update of supervisord does to its programs.
struct Update {
    said: String,
    /// Somebody is.
    interrupts: bool,
    restarted: BTreeSet<String>,
}

/// `None`: nothing to any of them.
fn programs(plan: &Plan) -> Option<Update> {
    let change = plan
        .files
        .iter()
        .find(|file| file.reader == Reader::Supervisord)?;
    let (before, after) = (sections(&change.before), sections(&change.after));
    let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut said = Vec::new();
    let mut interrupts = false;
    let mut restarted = BTreeSet::new();
    for section in all {
        let Some(name) = section.strip_prefix("program:") else {
            continue;
        };
        match (before.get(section), after.get(section)) {
            (None, _) if change.before.is_none() => {}
            (None, _) => said.push(format!("{name} is started")),
            (_, None) => {
                interrupts = true;
                said.push(format!("{name} ends"));
            }
            (Some(was), Some(is)) if was == is => {}
            // It never ends the one that is asking.
            _ if name == Program::Daemon.name() => {
                said.push(format!(
                    "{name} itself goes on, its new definition holds from its next start on"
                ));
            }
            _ => {
                interrupts = true;
                said.push(format!("{name} is restarted: {}", pause(name)));
                restarted.insert(name.to_owned());
            }
        }
    }
    (!said.is_empty()).then(|| Update {
        said: said.join("; "),
        interrupts,
        restarted,
    })
}

/// What a restart of a program means to those who use it.
fn pause(name: &str) -> &'static str {
    match name {
        "nginx" => "new connections are refused until open requests have ended and it is up again",
        "tailscaled" => "connections through the VPN pause for some seconds",
        _ => words(ActionKind::RestartHeadscale).2,
    }
}

/// The sections of an INI file by name.
fn sections(bytes: &Option<Vec<u8>>) -> BTreeMap<String, Vec<String>> {
    let text = bytes.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(next) => next.clone_into(&mut name),
            None if line.starts_with(';') => continue,
            None => sections.entry(name.clone()).or_default().push(line.to_owned()),
        }
    }
    sections
}

/// A file that somebody changed may hold anything. Control characters become pictures of themselves: a diff shows them, no
/// terminal obeys them, and a line ends with a line feed only.
pub(super) fn visible(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(picture).collect()
}

/// Whom it concerns, what happens, what traffic notices.
pub(crate) fn words(kind: ActionKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        ActionKind::UpdateListeners => (
            "listeners",
            "update in place",
            "requests and sessions that are open go on",
        ),
        ActionKind::UpdateSupervisor => (
            "supervisord",
            "update programs",
            "programs whose definition changed are restarted, others are left alone",
        ),
        ActionKind::ReloadNginx => (
            "nginx",
            "reload",
            "new connections are never refused; kept-alive ones are closed once they are idle",
        ),
        ActionKind::RestartNginx => (
            "nginx",
            "restart",
            "no reload can open an address while an old one overlaps it: new connections are refused for a moment; \
             what is open goes on, kept-alive connections are closed once they are idle",
        ),
        ActionKind::RestartHeadscale => (
            "headscale",
            "restart",
            "for about two seconds nobody can join and its relay carries nothing; else the VPN goes on",
        ),
        ActionKind::Start(program) => (program.name(), "start", "it begins to serve"),
    }
}

impl Report {
    /// For people: what somebody notices first, then what is done, then the files.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        match self.changes {
            false => out += "Nothing to do: the machine is the way the configuration says.\n",
            true => self.write(&mut out),
        }
        for note in &self.notes {
            let _ = writeln!(out, "\nnote: {note}");
        }
        // The settings are told above.
        for file in self
            .files
            .iter()
            .filter(|file| file.path != EFFECTIVE || self.causes.is_empty())
            .filter(|file| !file.diff.is_empty())
        {
            let _ = writeln!(out, "\n{}", file.diff.trim_end());
        }
        visible(&out)
    }

    fn write(&self, out: &mut String) {
        let changes = match self.causes.len() {
            0 => count(self.files.len(), "file"),
            causes => count(causes, "change"),
        };
        let cost = match self.disturbs {
            true => "somebody who is served now notices what is marked with !",
            false => "nobody who is served now is interrupted or loses anything",
        };
        let mark = |is| if is { '!' } else { ' ' };
        let _ = writeln!(out, "{changes}; {cost}.\n");
        for cause in &self.causes {
            let values = cause
                .values
                .as_ref()
                .map(|it| format!(": {it}"))
                .unwrap_or_default();
            let source = cause
                .source
                .as_ref()
                .map(|it| format!(", {it}"))
                .unwrap_or_default();
            let _ = writeln!(out, "{} {}{values}{source}", mark(cause.breaks), cause.what);
            if let Some(effect) = &cause.effect {
                let _ = writeln!(out, "    {effect}");
            }
        }
        if !self.causes.is_empty() {
            out.push('\n');
        }
        if self.actions.is_empty() {
            *out += "No program has to be told.\n";
        }
        for action in &self.actions {
            let _ = writeln!(
                out,
                "{} {}: {}, because {}\n    {}",
                mark(action.interrupts),
                action.target,
                action.action,
                action.reason,
                action.effect
            );
        }
        let _ = writeln!(out);
        for file in &self.files {
            let causes = self
                .causes
                .iter()
                .filter(|cause| cause.files.contains(&file.path));
            let causes: Vec<_> = causes.map(|cause| cause.what.as_str()).collect();
            // With a single cause there is nothing to tell apart.
            let because = match causes.is_empty() || self.causes.len() == 1 {
                true => String::new(),
                false => format!(", because {}", causes.join(", ")),
            };
            let _ = writeln!(out, "  {}: {}{because}", file.path, file.change);
        }
    }
}

fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}
