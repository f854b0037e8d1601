//! What somebody else did to what is live, so that it can be put right, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::apply::{Machine, generation};
use crate::desired::{Program, Reader};
use crate::paths::StateDir;
use crate::plan::{Plan, Present, ServiceState};

/// How the machine was other than it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    /// A rendered file had other bytes.
    Edited,
    /// A rendered file was not there.
    Deleted,
    /// A rendered file was a link to another.
    Link,
    /// A rendered file had another mode.
    Mode,
    /// There was a file that nobody had rendered.
    Added,
    /// `current` did not lead to the generation that was made live.
    Current,
    /// A program had ended without being told to.
    Program,
}

impl Drift {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Edited,
        Self::Deleted,
        Self::Link,
        Self::Mode,
        Self::Added,
        Self::Current,
        Self::Program,
    ];

    /// One word, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Deleted => "deleted",
            Self::Link => "link",
            Self::Mode => "mode",
            Self::Added => "added",
            Self::Current => "current",
            Self::Program => "program",
        }
    }
}

/// One thing that is other than it was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub(super) kind: Drift,
    /// A file, a link, a program.
    what: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match self.kind {
            Drift::Edited => write!(f, "somebody edited {what}"),
            Drift::Deleted => write!(f, "somebody deleted {what}"),
            Drift::Link => write!(f, "somebody put a link in the place of {what}"),
            Drift::Mode => write!(f, "somebody changed the mode of {what}"),
            Drift::Added => write!(f, "somebody added {what}"),
            Drift::Current => write!(f, "somebody pointed {what} elsewhere"),
            Drift::Program => write!(f, "{what} had ended by itself"),
        }
    }
}

/// What became of the files of a generation, and of the link to it. `paths` are those that are not as they were
/// written; `made` is the generation that was made live last.
pub(super) fn on_disk<M: Machine>(
    machine: &M,
    state: &StateDir,
    present: &Present,
    plan: &Plan,
    paths: &[String],
    made: Option<u32>,
) -> Vec<Found> {
    let folder = present.generation.map(|number| generation::dir(state, number));
    let manifest = present
        .generation
        .and_then(|number| generation::manifest(machine, state, number));
    let kind = |path: &String| {
        let is_link =
            |folder: &std::path::PathBuf| matches!(machine.read_link(&folder.join(path)), Ok(Some(_)));
        match (present.files.contains_key(path), &manifest) {
            (true, Some(manifest)) if !manifest.files.contains_key(path) => Drift::Added,
            (true, _) => Drift::Edited,
            (false, _) if folder.as_ref().is_some_and(is_link) => Drift::Link,
            (false, _) => Drift::Deleted,
        }
    };
    let files = paths.iter().map(|path| Found {
        kind: kind(path),
        what: path.clone(),
    });
    let is_led_astray = !present.owed && made.is_some() && made != present.generation;
    let current = is_led_astray.then(|| Found {
        kind: Drift::Current,
        what: state.current().display().to_string(),
    });
    let modes = plan
        .files
        .iter()
        .filter(|file| file.is_of_mode())
        .map(|file| Found {
            kind: Drift::Mode,
            what: file.path.clone(),
        });
    files.chain(modes).chain(current).collect()
}

/// Programs by what was last seen of them.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// By the pid it had.
    running: BTreeMap<String, i32>,
    /// They ran, and ended without being told to.
    fallen: BTreeSet<String>,
    /// What is other than it was may be our own doing.
    acted: bool,
    /// The Headscale that runs, and the files that it found.
    headscale: Option<(i32, BTreeMap<String, Vec<u8>>)>,
}

impl Programs {
    /// Programs may have been started, ended or restarted by us.
    pub(super) fn acted(&mut self) {
        self.acted = true;
    }

    /// Takes note of those that have ended since.
    pub(super) fn look(&mut self, present: &Present) {
        let acted = std::mem::take(&mut self.acted);
        for (name, service) in present.services.iter().flatten() {
            let is_stopped = service.state == ServiceState::StoppedByOperator;
            let pid = service.pid.filter(|_| service.state == ServiceState::Up);
            let former = match pid {
                Some(pid) => self.running.insert(name.clone(), pid),
                None => self.running.remove(name),
            };
            if is_stopped {
                self.fallen.remove(name);
            } else if former.is_some() && former != pid && !acted {
                self.fallen.insert(name.clone());
            }
        }
    }

    /// What the Headscale that runs has read: its files as they were when it was first seen.
    pub(super) fn headscale_read(&mut self, present: &Present) -> Option<BTreeMap<String, Vec<u8>>> {
        let service = present.services.as_ref()?.get(Program::Headscale.name())?;
        let pid = service.pid?;
        let files = || {
            let all = present.files.iter();
            let its = all.filter(|(path, _)| Reader::of(path) == Reader::Headscale);
            its.map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
        };
        if self.headscale.as_ref().is_none_or(|(former, _)| *former != pid) {
            self.headscale = Some((pid, files()));
        }
        self.headscale.as_ref().map(|(_, files)| files.clone())
    }

    /// Those that had ended and run again.
    pub(super) fn back(&mut self, present: &Present) -> Vec<Found> {
        let services = present.services.iter().flatten();
        let up = services.filter(|(_, service)| service.is_steady());
        up.filter_map(|(name, _)| self.fallen.take(name))
            .map(|what| Found {
                kind: Drift::Program,
                what,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Service;
    use crate::supervisor::State;

    fn nginx(process: State, pid: i32) -> Present {
        let state = match process {
            State::Running | State::Starting => ServiceState::Up,
            State::Stopped => ServiceState::StoppedByOperator,
            _ => ServiceState::Down,
        };
        let service = Service {
            state,
            process,
            pid: (state == ServiceState::Up).then_some(pid),
            started: None,
            detail: String::new(),
        };
        Present {
            services: Some(BTreeMap::from([("nginx".to_owned(), service)])),
            ..Present::default()
        }
    }

    #[test]
    fn a_program_that_fell_counts_once_it_runs_again() {
        use State::{Backoff, Running, Starting, Stopped};
        let story = |steps: &[(State, i32, bool)]| {
            let mut programs = Programs::default();
            let mut back = 0;
            for &(process, pid, acted) in steps {
                if acted {
                    programs.acted();
                }
                programs.look(&nginx(process, pid));
                back += programs.back(&nginx(process, pid)).len();
            }
            back
        };
        assert_eq!(
            story(&[(Starting, 1, false), (Running, 1, false), (Running, 1, false)]),
            0
        );
        assert_eq!(
            story(&[
                (Running, 1, false),
                (Backoff, 0, false),
                (Starting, 2, false),
                (Running, 2, false)
            ]),
            1
        );
        assert_eq!(story(&[(Running, 1, false), (Running, 2, false)]), 1);
        // Ever again too soon, and then it stays: that is one.
        let again = [
            (Running, 1, false),
            (Backoff, 0, false),
            (Starting, 2, false),
            (Backoff, 0, false),
        ];
        assert_eq!(story(&[&again[..], &[(Running, 3, false)]].concat()), 1);
        // We restarted it, or an operator did.
        assert_eq!(story(&[(Running, 1, false), (Running, 2, true)]), 0);
        assert_eq!(
            story(&[(Running, 1, false), (Stopped, 0, false), (Running, 2, false)]),
            0
        );
        assert_eq!(story(&[(Backoff, 0, false), (Running, 2, false)]), 0);
    }
}
