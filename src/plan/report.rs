//! A plan for people (prose and diffs) and for machines (JSON).

use serde::Serialize;

use super::{ActionKind, FileChange, Plan};

/// The serialisable form of a plan; holds no bytes, only text diffs.
#[derive(Debug, Serialize)]
pub struct Report {
    pub changes: bool,
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
    pub effect: &'static str,
}

impl From<&Plan> for Report {
    fn from(plan: &Plan) -> Self {
        Self {
            changes: !plan.is_empty(),
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
                        effect,
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
            .map(|b| String::from_utf8_lossy(b).into_owned())
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
                line(format!("  {}: {}", file.path, file.change));
            }
        }
        for note in &self.notes {
            line(format!("  note: {note}"));
        }
        for file in &self.files {
            line(String::new());
            line(file.diff.trim_end().to_owned());
        }
        out
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    match n {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}
