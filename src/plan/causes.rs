//! Why a plan is what it is: the keys of `vpc.toml` and the facts that differ, and what each of them changes.
//!
//! Which file a key changes is not guessed: the key is put back to what it was, and what is rendered then differs in
//! just the files that the key is the cause of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{Change, Document};
use super::effects::{Effect, effect, of_fact};
use super::secrets::hide;
use super::{ActionKind, FileChange, Listeners, Plan, Present};
use crate::desired::{Desired, OVERRIDES, Reader};
use crate::facts::Facts;
use crate::spec::Spec;

/// Putting back is done one by one for no more keys than this; beyond it they are the cause together.
const ONE_BY_ONE: usize = 12;

/// Longer values are not repeated.
const LONGEST: usize = 80;

/// One difference between what was live and what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cause {
    /// E.g. `backend "db" was added`.
    pub what: String,
    /// The values, where they are short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<String>,
    /// `vpc.toml:14`, a variable, or who told us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What those who use the machine notice of it, beside what the actions cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// Somebody who is served now will not be, or elsewhere.
    pub breaks: bool,
    /// The files that differ because of it.
    pub files: Vec<String>,
    /// Whether the built-in listeners work otherwise because of it.
    pub listeners: bool,
}

impl Cause {
    fn with(self, effect: Option<Effect>) -> Self {
        Self {
            breaks: effect.as_ref().is_some_and(|effect| effect.breaks),
            effect: effect.map(|effect| effect.text),
            ..self
        }
    }
}

/// What the live generation was made from.
#[derive(Default)]
pub struct Before {
    pub spec: Option<Spec>,
    /// By key.
    pub facts: BTreeMap<String, String>,
    /// Files that somebody edited since.
    pub drifted: Vec<String>,
}

/// What the desired state is made from.
pub struct After<'a> {
    pub spec: &'a Spec,
    pub facts: &'a Facts,
    /// Where the value of a key stands; `None` where that means nothing to a person.
    pub source: &'a dyn Fn(&str) -> Option<String>,
    /// Renders other settings under the same facts.
    pub render: &'a dyn Fn(&Spec) -> Option<Desired>,
}

impl Plan {
    /// Finds the causes, and says them as the reasons of the actions.
    pub fn find_causes(&mut self, desired: &Desired, present: &Present, before: &Before, after: &After<'_>) {
        if self.is_empty() {
            return;
        }
        self.causes = causes(self, desired, present, before, after);
        for action in &mut self.actions {
            let concerned = |cause: &&Cause| match action.kind {
                ActionKind::UpdateListeners => cause.listeners,
                ActionKind::ReloadNginx | ActionKind::RestartNginx => has(cause, Reader::Nginx),
                ActionKind::RestartHeadscale => has(cause, Reader::Headscale),
                ActionKind::UpdateSupervisor => has(cause, Reader::Supervisord),
                ActionKind::Start(_) => false,
            };
            let whats: Vec<_> = self
                .causes
                .iter()
                .filter(concerned)
                .map(|it| it.what.clone())
                .collect();
            if !whats.is_empty() && !present.owed {
                action.reason = whats.join(", ");
            }
        }
    }
}

fn has(cause: &Cause, reader: Reader) -> bool {
    cause.files.iter().any(|path| Reader::of(path) == reader)
}

fn causes(
    plan: &Plan,
    desired: &Desired,
    present: &Present,
    before: &Before,
    after: &After<'_>,
) -> Vec<Cause> {
    let mut causes = Vec::new();
    for path in &before.drifted {
        causes.push(Cause {
            what: format!("somebody edited {path}"),
            effect: Some("the edit is undone".to_owned()),
            files: vec![path.clone()],
            ..Cause::default()
        });
    }
    for change in plan.files.iter().filter(|change| change.is_of_mode()) {
        causes.push(Cause {
            what: format!("somebody changed the mode of {}", change.path),
            effect: Some("it gets its own again".to_owned()),
            files: vec![change.path.clone()],
            ..Cause::default()
        });
    }
    for change in plan.files.iter().filter(|change| !change.is_of_mode()) {
        if let Some(name) = change.path.strip_prefix(OVERRIDES) {
            let name = name.trim_start_matches('/');
            let reader = Reader::of_template(name);
            let own = |file: &&FileChange| file.path == change.path || file.reader == reader;
            let files = plan.files.iter().filter(own);
            causes.push(Cause {
                what: format!("the template {name} changed"),
                files: files.map(|file| file.path.clone()).collect(),
                ..Cause::default()
            });
        }
    }
    let Some(old) = &before.spec else {
        return causes;
    };
    let (was, old, new) = (old, Document::of(old), Document::of(after.spec));
    let cause = |change: &Change, files: Vec<String>, listeners| Cause {
        files,
        listeners,
        ..cause(change, was, after)
    };
    let changes = new.changes_since(&old);
    let all_files = || {
        plan.files
            .iter()
            .map(|file| file.path.clone())
            .collect::<Vec<_>>()
    };
    if changes.len() > ONE_BY_ONE {
        causes.extend(changes.iter().map(|change| cause(change, all_files(), true)));
        return causes;
    }
    // One key, and nothing else: all that differs is for its sake. To render twice more would take longer than the edit.
    if let ([change], [], Listeners::Open(now)) = (&changes[..], &causes[..], &present.listeners)
        && before.facts == desired.facts
    {
        return vec![cause(change, all_files(), **now != desired.listeners)];
    }
    for change in &changes {
        let without = new.without(change).spec().and_then(|spec| (after.render)(&spec));
        let (files, listeners) = match without {
            Some(without) => (
                differing(desired, &without),
                desired.listeners != without.listeners,
            ),
            // It cannot be put back alone.
            None => (all_files(), true),
        };
        causes.push(cause(change, files, listeners));
    }
    // What differs with the settings of before comes from the machine, or from this program's own version.
    let as_before = match changes.is_empty() {
        true => Some(desired.clone()),
        false => old.spec().and_then(|spec| (after.render)(&spec)),
    };
    let Some(as_before) = as_before else { return causes };
    let unexplained: Vec<String> = plan
        .files
        .iter()
        .map(|file| &file.path)
        .filter(|path| as_before.files.get(*path).map(|file| &file.bytes) != present.files.get(*path))
        .filter(|path| !causes.iter().any(|cause| cause.files.contains(path)))
        .cloned()
        .collect();
    let facts = facts(before, after);
    let listeners = match &present.listeners {
        Listeners::Open(now) => **now != as_before.listeners,
        Listeners::Closed | Listeners::NotOurs => causes.is_empty(),
    };
    match (facts.is_empty(), unexplained.is_empty()) {
        (false, nothing) if nothing && !listeners => {}
        (false, _) => causes.extend(facts.into_iter().map(|fact| Cause {
            files: unexplained.clone(),
            listeners,
            ..fact
        })),
        (true, false) => causes.push(Cause {
            // The daemon's own command line stands in supervisord's file.
            what: match unexplained.iter().all(|path| path.starts_with("supervisor/")) {
                true => "dstack-vpc would be started otherwise: with this --config, or as this version",
                false => "this version of dstack-vpc renders it differently",
            }
            .to_owned(),
            files: unexplained,
            ..Cause::default()
        }),
        (true, true) => {}
    }
    causes
}

fn differing(one: &Desired, other: &Desired) -> Vec<String> {
    let of_one = one
        .files
        .iter()
        .filter(|(path, file)| other.files.get(*path).map(|it| &it.bytes) != Some(&file.bytes));
    let of_other = other.files.keys().filter(|path| !one.files.contains_key(*path));
    of_one.map(|(path, _)| path).chain(of_other).cloned().collect()
}

/// Facts that are others now.
fn facts(before: &Before, after: &After<'_>) -> Vec<Cause> {
    let rows = after.facts.rows().into_iter();
    rows.filter_map(|row| {
        let old = before.facts.get(row.key)?;
        (*old != row.value).then(|| {
            let cause = Cause {
                what: match row.key {
                    "identity" => "the certificate was renewed".to_owned(),
                    key => format!("{key} changed"),
                },
                values: Some(format!("{} (was {old})", row.value)),
                source: Some(row.source).filter(|source| !source.is_empty()),
                ..Cause::default()
            };
            cause.with(of_fact(row.key, after.spec))
        })
    })
    .collect()
}

fn cause(change: &Change, was: &Spec, after: &After<'_>) -> Cause {
    let values = match change {
        Change::Value { key, old, new, .. } if old.len() + new.len() <= LONGEST => {
            let (old, known) = hide(&format!("{key} = {old}"), None);
            let (new, _) = hide(&format!("{key} = {new}"), Some(&known));
            let value = |line: &str| {
                line.strip_prefix(key.as_str())
                    .unwrap_or(line)
                    .trim_start_matches([' ', '='])
                    .to_owned()
            };
            Some(format!("{} (was {})", value(&new), value(&old)))
        }
        _ => None,
    };
    let cause = Cause {
        what: change.words(),
        values,
        source: change.place().and_then(|key| (after.source)(&key)),
        ..Cause::default()
    };
    cause.with(effect(change, was, after.spec))
}
