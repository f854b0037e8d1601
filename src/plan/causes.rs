//! Why a plan is what it is: the keys of `vpc.toml` and the facts that differ, and what each of them changes.
//!
//! Which file a key changes is not guessed: the key is put back to what it was, and what is rendered then differs in
//! just the files that the key is the cause of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::effects::{Effect, effect, of_fact};
use super::secrets::hide;
use super::{ActionKind, FileChange, Listeners, Plan, Present};
use crate::desired::{Desired, OVERRIDES, Reader};
use crate::facts::Facts;
use crate::spec::{ConfigText, Spec, load};

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
                ActionKind::UpdateSupervisor { .. } => has(cause, Reader::Supervisord),
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

/// A spec as keys and values, both TOML; backends and forwards by name, since their places move.
#[derive(Clone)]
struct Document {
    keys: Vec<(String, String)>,
    entries: Vec<Entry>,
}

/// A table of a list.
#[derive(Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) place: Place,
    keys: Vec<(String, String)>,
}

/// Which table of which list.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) list: List,
    /// As TOML: quoted.
    pub(super) name: String,
    index: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    Backends,
    Forwards,
}

impl List {
    /// As it is written in the file, and one of it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Backends => ("backends", "backend"),
            Self::Forwards => ("forwards", "forward"),
        }
    }

    /// `backends[3].name`: the list, the place in it, and the key.
    fn of(path: &str) -> Option<(Self, usize, &str)> {
        [Self::Backends, Self::Forwards].into_iter().find_map(|list| {
            let rest = path.strip_prefix(list.words().0)?.strip_prefix('[')?;
            let (index, key) = rest.split_once("].")?;
            Some((list, index.parse().ok()?, key))
        })
    }
}

impl Place {
    /// What makes it the same one.
    fn id(&self) -> (List, &str) {
        (self.list, &self.name)
    }
}

pub(super) enum Change {
    Value {
        /// `None`: of a section.
        of: Option<Place>,
        key: String,
        old: String,
        new: String,
    },
    Added(Place),
    Removed(Entry),
}

impl Change {
    fn words(&self) -> String {
        let named = |place: &Place| format!("{} {}", place.list.words().1, place.name);
        match self {
            Self::Value { of: None, key, .. } => format!("{key} changed"),
            Self::Value {
                of: Some(place), key, ..
            } => format!("{key} of {} changed", named(place)),
            Self::Added(place) => format!("{} was added", named(place)),
            Self::Removed(entry) => format!("{} was removed", named(&entry.place)),
        }
    }

    /// The key by which its place in the file is known.
    fn place(&self) -> Option<String> {
        let path = |place: &Place, key: &str| format!("{}[{}].{key}", place.list.words().0, place.index);
        match self {
            Self::Value { of: None, key, .. } => Some(key.clone()),
            Self::Value {
                of: Some(place), key, ..
            } => Some(path(place, key)),
            Self::Added(place) => Some(path(place, "name")),
            Self::Removed(_) => None,
        }
    }
}

impl Document {
    fn of(spec: &Spec) -> Self {
        let mut document = Self {
            keys: Vec::new(),
            entries: Vec::new(),
        };
        for (path, value) in spec.values() {
            let Some((list, index, key)) = List::of(&path) else {
                document.keys.push((path, value));
                continue;
            };
            let same = |entry: &Entry| (entry.place.list, entry.place.index) == (list, index);
            if !document.entries.last().is_some_and(same) {
                let (name, keys) = (String::new(), Vec::new());
                let place = Place { list, name, index };
                document.entries.push(Entry { place, keys });
            }
            if let Some(entry) = document.entries.last_mut() {
                if key == "name" {
                    entry.place.name.clone_from(&value);
                }
                entry.keys.push((key.to_owned(), value));
            }
        }
        document
    }

    fn changes_since(&self, old: &Self) -> Vec<Change> {
        let was: BTreeMap<_, _> = old.keys.iter().map(|(key, value)| (key, value)).collect();
        let values = self.keys.iter().filter_map(|(key, new)| {
            let old = *was.get(key).filter(|old| **old != new)?;
            Some(Change::Value {
                of: None,
                key: key.clone(),
                old: old.clone(),
                new: new.clone(),
            })
        });
        let mut changes: Vec<_> = values.collect();
        let there: BTreeMap<_, _> = old.entries.iter().map(|it| (it.place.id(), it)).collect();
        for entry in &self.entries {
            let Some(old) = there.get(&entry.place.id()) else {
                changes.push(Change::Added(entry.place.clone()));
                continue;
            };
            let pairs = entry.keys.iter().zip(&old.keys);
            changes.extend(
                pairs
                    .filter(|(new, old)| new != old)
                    .map(|((key, new), (_, old))| Change::Value {
                        of: Some(entry.place.clone()),
                        key: key.clone(),
                        old: old.clone(),
                        new: new.clone(),
                    }),
            );
        }
        let here: BTreeSet<_> = self.entries.iter().map(|it| it.place.id()).collect();
        let gone = old.entries.iter().filter(|it| !here.contains(&it.place.id()));
        changes.extend(gone.cloned().map(Change::Removed));
        changes
    }

    /// The same with one change put back.
    fn without(&self, change: &Change) -> Self {
        let mut document = self.clone();
        match change {
            Change::Value { of, key, old, .. } => {
                let keys = match of {
                    None => Some(&mut document.keys),
                    Some(place) => {
                        let entry = document.entries.iter_mut().find(|it| it.place == *place);
                        entry.map(|entry| &mut entry.keys)
                    }
                };
                for (_, value) in keys.into_iter().flatten().filter(|(name, _)| name == key) {
                    value.clone_from(old);
                }
            }
            Change::Added(place) => document.entries.retain(|it| it.place != *place),
            Change::Removed(entry) => document.entries.push(entry.clone()),
        }
        document
    }

    /// `None`: the values do not go together.
    fn spec(&self) -> Option<Spec> {
        let mut text = String::new();
        for (path, value) in &self.keys {
            // Dotted keys need no headings.
            text += &format!("{path} = {value}\n");
        }
        for entry in &self.entries {
            text += &format!("[[{}]]\n", entry.place.list.words().0);
            for (key, value) in &entry.keys {
                text += &format!("{key} = {value}\n");
            }
        }
        let text = ConfigText::new("before", text);
        Some(load(Some(&text), &BTreeMap::new()).ok()?.spec)
    }
}
