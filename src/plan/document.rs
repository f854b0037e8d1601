//! Two settings beside each other: which keys, backends and forwards differ.

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{ConfigText, Spec, load};

/// A spec as keys and values, both TOML; backends and forwards by name, since their places move.
#[derive(Clone)]
pub(super) struct Document {
    keys: Vec<(String, String)>,
    entries: Vec<Entry>,
}

impl Document {
    pub(super) fn of(spec: &Spec) -> Self {
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

    pub(super) fn changes_since(&self, old: &Self) -> Vec<Change> {
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
    pub(super) fn without(&self, change: &Change) -> Self {
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
    pub(super) fn spec(&self) -> Option<Spec> {
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
    pub(super) fn words(&self) -> String {
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
    pub(super) fn place(&self) -> Option<String> {
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

impl Place {
    /// What makes it the same one.
    fn id(&self) -> (List, &str) {
        (self.list, &self.name)
    }
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
