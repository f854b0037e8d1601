//! What happened to this machine, and what each change changed, as `dstack-vpc plan` would have shown it before.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::view::moment;
use crate::apply::{Real, generation};
use crate::paths::StateDir;
use crate::plan::{FileReport, differences};
use crate::reconcile::status::Event;

/// Events on the page, and lines of a file's difference; `dstack-vpc history` has more, and the folders have all.
const EVENTS: usize = 20;
const LINES: usize = 400;

/// An event as the page shows it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    at: String,
    outcome: String,
    well: bool,
    generation: Option<u32>,
    cause: String,
    detail: String,
    took_ms: u64,
    files: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    path: String,
    change: String,
    lines: Vec<Line>,
    left_out: usize,
}

#[derive(Debug, Serialize)]
struct Line {
    /// `add`, `del`, or neither.
    kind: &'static str,
    text: String,
}

/// The newest first.
pub(super) fn entries(history: &[Event], diffs: &ByStep) -> Vec<Entry> {
    let steps = steps(history);
    let newest = history.iter().zip(steps).rev().take(EVENTS);
    let entries = newest.map(|(event, step)| Entry {
        at: moment(event.at),
        outcome: event.outcome.clone(),
        well: !["refused", "failed", "rolled back"].contains(&event.outcome.as_str()),
        generation: event.generation,
        cause: event.cause.clone(),
        detail: event.detail.clone(),
        took_ms: event.stage_ms + event.act_ms,
        files: step
            .and_then(|step| diffs.get(&step))
            .map(|files| files.iter().map(difference).collect())
            .unwrap_or_default(),
    });
    entries.collect()
}

fn difference(file: &FileReport) -> Difference {
    let lines = file.diff.lines().take(LINES).map(|text| Line {
        kind: match text.as_bytes().first() {
            Some(b'+') => "add",
            Some(b'-') => "del",
            _ => "",
        },
        text: text.to_owned(),
    });
    Difference {
        path: file.path.clone(),
        change: file.change.clone(),
        lines: lines.collect(),
        left_out: file.diff.lines().count().saturating_sub(LINES),
    }
}

/// From one generation to another.
type Step = (u32, u32);

/// The differences by step; none where one of the two is no longer kept.
pub(super) type ByStep = BTreeMap<Step, Arc<[FileReport]>>;

/// A generation is not edited once it is complete, so each step is looked at once.
pub(super) struct Diffs {
    state: StateDir,
    known: ByStep,
}

impl Diffs {
    pub(super) fn new(state: StateDir) -> Self {
        let known = BTreeMap::new();
        Self { state, known }
    }

    pub(super) async fn of(&mut self, history: &[Event]) -> ByStep {
        let wanted: Vec<Step> = steps(history).into_iter().flatten().collect();
        self.known.retain(|step, _| wanted.contains(step));
        let missing: Vec<Step> = wanted
            .into_iter()
            .filter(|step| !self.known.contains_key(step))
            .collect();
        if !missing.is_empty() {
            let state = self.state.clone();
            let read = move || {
                missing
                    .into_iter()
                    .filter_map(|step| read(&state, step))
                    .collect()
            };
            // Should it panic, there are no diffs this time.
            let read: ByStep = tokio::task::spawn_blocking(read).await.unwrap_or_default();
            self.known.extend(read);
        }
        self.known.clone()
    }
}

/// The step that each event made: from what served before it to what serves since.
fn steps(history: &[Event]) -> Vec<Option<Step>> {
    let mut before = None;
    let steps = history.iter().map(|event| {
        let step = before.zip(event.generation).filter(|(from, to)| from != to);
        before = event.generation.or(before);
        step
    });
    steps.collect()
}

fn read(state: &StateDir, (from, to): Step) -> Option<(Step, Arc<[FileReport]>)> {
    let disk = Real::new(state, None);
    let files = |number| {
        let there = generation::manifest(&disk, state, number).is_some();
        there.then(|| generation::files(&disk, state, number))
    };
    Some(((from, to), differences(&files(from)?, &files(to)?).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::generation::{MANIFEST, Manifest, dir};

    fn event(generation: Option<u32>) -> Event {
        Event {
            at: jiff::Timestamp::UNIX_EPOCH,
            generation,
            outcome: "live".into(),
            cause: String::new(),
            detail: String::new(),
            stage_ms: 0,
            act_ms: 0,
        }
    }

    #[test]
    fn a_step_leads_from_what_served_before() {
        let history = [None, Some(1), Some(1), Some(2), None, Some(4), Some(2)].map(event);
        let expected = [None, None, None, Some((1, 2)), None, Some((2, 4)), Some((4, 2))];
        assert_eq!(steps(&history), expected);
    }

    #[tokio::test]
    async fn a_change_is_shown_without_its_secrets_while_both_sides_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(root.path());
        let manifest = Manifest {
            tag: String::new(),
            probes: Vec::new(),
            files: BTreeMap::new(),
            facts: BTreeMap::new(),
            cause: String::new(),
            made_at: String::new(),
        };
        for (number, text) in [
            (1, "a = 1\npassword = hunter1\n"),
            (2, "a = 2\npassword = hunter2\n"),
        ] {
            let dir = dir(&state, number);
            std::fs::create_dir_all(dir.join("nginx")).unwrap();
            std::fs::write(dir.join("nginx/nginx.conf"), text).unwrap();
            std::fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        }
        let history = [Some(1), Some(2), Some(3)].map(event);
        let diffs = Diffs::new(state).of(&history).await;
        let entries = entries(&history, &diffs);
        let numbers: Vec<_> = entries
            .iter()
            .map(|entry| (entry.generation, entry.files.len()))
            .collect();
        assert_eq!(numbers, [(Some(3), 0), (Some(2), 1), (Some(1), 0)]);
        let lines = entries[1].files[0].lines.iter().skip(3);
        let lines: Vec<_> = lines.map(|line| (line.kind, line.text.as_str())).collect();
        assert_eq!(
            lines,
            [
                ("del", "-a = 1"),
                ("del", "-password = (secret)"),
                ("add", "+a = 2"),
                ("add", "+password = (another secret)")
            ]
        );
    }
}
