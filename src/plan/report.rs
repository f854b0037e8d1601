//! A plan for people (prose and diffs) and for machines (JSON).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{ActionKind, Cause, FileChange, Plan};
use crate::desired::Reader;

/// The serialisable form of a plan; holds no bytes, only text diffs.
#[derive(Debug, Serialize)]
pub struct Report {
    pub changes: bool,
    pub causes: Vec<Cause>,
    pub files: Vec<FileReport>,
    pub actions: Vec<ActionReport>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct FileReport {
    pub path: String,
    pub change: &'static str,
    pub diff: String,
}

#[derive(Debug, Serialize)]
pub struct ActionReport {
    /// `mesh`, `supervisord`, or the program's name.
    pub target: &'static str,
    pub action: &'static str,
    pub reason: String,
    /// What traffic notices.
    pub effect: String,
}

impl From<&Plan> for Report {
    fn from(plan: &Plan) -> Self {
        Self {
            changes: !plan.is_empty(),
            causes: plan.causes.clone(),
            files: plan.files.iter().map(file).collect(),
            actions: plan
                .actions
                .iter()
                .map(|action| {
                    let (target, verb, effect) = words(action.kind);
                    ActionReport {
                        target,
                        action: verb,
                        reason: action.reason.clone(),
                        effect: match action.kind {
                            ActionKind::UpdateSupervisor { .. } => {
                                programs(plan).unwrap_or(effect.to_owned())
                            }
                            _ => effect.to_owned(),
                        },
                    }
                })
                .collect(),
            notes: plan.missing.iter().chain(&plan.notes).cloned().collect(),
        }
    }
}

fn file(change: &FileChange) -> FileReport {
    let text = |bytes: &Option<Vec<u8>>| {
        bytes
            .as_ref()
            .map(|b| visible(&String::from_utf8_lossy(b)))
            .unwrap_or_default()
    };
    let (before, after) = (text(&change.before), text(&change.after));
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
            _ => "changed",
        },
        diff,
    }
}

/// What an update of supervisord does to its programs, by name.
fn programs(plan: &Plan) -> Option<String> {
    let change = plan
        .files
        .iter()
        .find(|file| file.reader == Reader::Supervisord)?;
    let (before, after) = (sections(&change.before), sections(&change.after));
    let name = |section: &str| Some(section.strip_prefix("program:")?.to_owned());
    let pick = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        all.into_iter()
            .filter(|it| wanted(it))
            .filter_map(|it| name(it))
            .collect()
    };
    let groups = [
        ("starts", pick(&|it| !before.contains_key(it))),
        ("ends", pick(&|it| !after.contains_key(it))),
        (
            "restarts",
            pick(&|it| before.contains_key(it) && after.contains_key(it) && before[it] != after[it]),
        ),
    ];
    let said: Vec<_> = groups
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(verb, names)| format!("it {verb} {}", names.join(", ")))
        .collect();
    (!said.is_empty()).then(|| format!("{}; other programs are left alone", said.join(", ")))
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
        ActionKind::UpdateListeners => ("listeners", "update in place", "no connection is dropped"),
        ActionKind::UpdateSupervisor { .. } => (
            "supervisord",
            "update programs",
            "programs whose definition changed are restarted, others are left alone",
        ),
        ActionKind::ReloadNginx => (
            "nginx",
            "reload",
            "new connections are never refused; kept-alive ones are closed once they are idle",
        ),
        ActionKind::RestartHeadscale => (
            "headscale",
            "restart",
            "the VPN goes on; joining waits about two seconds",
        ),
        ActionKind::Start(program) => (program.name(), "start", "it begins to serve"),
    }
}

impl Report {
    /// Prose first (what will happen), then the diffs.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        if !self.changes {
            line("Nothing to do: the machine is the way the configuration says.".into());
        } else {
            if !self.causes.is_empty() {
                line("What is different:".into());
            }
            for cause in &self.causes {
                let values = cause
                    .values
                    .as_ref()
                    .map(|it| format!(": {it}"))
                    .unwrap_or_default();
                let source = cause
                    .source
                    .as_ref()
                    .map(|it| format!(" ({it})"))
                    .unwrap_or_default();
                line(format!("  {}{values}{source}", cause.what));
            }
            line(format!(
                "{} and {}:",
                count(self.files.len(), "file changes", "files change"),
                count(self.actions.len(), "action follows", "actions follow")
            ));
            for action in &self.actions {
                line(format!(
                    "  {}: {}, because {}; {}.",
                    action.target, action.action, action.reason, action.effect
                ));
            }
            for file in &self.files {
                let causes = self
                    .causes
                    .iter()
                    .filter(|cause| cause.files.contains(&file.path));
                let causes: Vec<_> = causes.map(|cause| cause.what.as_str()).collect();
                let because = match causes.is_empty() {
                    true => String::new(),
                    false => format!(", because {}", causes.join(", ")),
                };
                line(format!("  {}: {}{because}", file.path, file.change));
            }
        }
        for note in &self.notes {
            line(format!("  note: {note}"));
        }
        for file in &self.files {
            line(String::new());
            line(file.diff.trim_end().to_owned());
        }
        visible(&out)
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    match n {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}
