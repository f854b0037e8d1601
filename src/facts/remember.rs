//! The last good answers of the platform, in `<state>/run/facts.json`: used, and marked as remembered, while
//! nothing answers.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ask::CHOSEN;
use super::{Fact, Facts};
use crate::paths::StateDir;

/// How a remembered fact's source begins.
pub(super) const REMEMBERED: &str = "remembered: ";

const FILE: &str = "facts.json";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Remembered {
    app_id: Option<Entry>,
    instance_id: Option<Entry>,
    gateway: Option<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    value: String,
    source: String,
    /// Seconds since 1970.
    at: u64,
}

impl<T> Fact<T> {
    /// It is from an earlier life, and nothing has confirmed it since.
    pub fn is_remembered(&self) -> bool {
        self.source.starts_with(REMEMBERED)
    }
}

/// Puts into `facts` what was remembered. A file that is missing or damaged is no memory.
pub(super) fn recall(state: &StateDir, facts: &mut Facts) {
    let json = std::fs::read(state.run().join(FILE)).unwrap_or_default();
    recall_from(&json, facts);
}

pub(super) fn recall_from(json: &[u8], facts: &mut Facts) {
    let memory: Remembered = serde_json::from_slice(json).unwrap_or_default();
    facts.app_id = memory.app_id.and_then(Entry::fact);
    facts.instance_id = memory.instance_id.and_then(Entry::fact);
    facts.gateway = memory.gateway.and_then(Entry::fact);
}

/// Replaces the memory by what `facts` know now.
pub(super) fn remember(state: &StateDir, facts: &Facts) -> std::io::Result<()> {
    replace_file(&state.run(), FILE, &memory_of(facts)?)
}

pub(super) fn memory_of(facts: &Facts) -> serde_json::Result<Vec<u8>> {
    let memory = Remembered {
        app_id: facts.app_id.as_ref().map(Entry::from_fact),
        instance_id: facts.instance_id.as_ref().map(Entry::from_fact),
        // What the spec names is known without a memory, and only as long as it does.
        gateway: facts
            .gateway
            .as_ref()
            .filter(|fact| fact.source != CHOSEN)
            .map(Entry::from_fact),
    };
    serde_json::to_vec_pretty(&memory)
}

/// Replaces a file in one step; the folder is made when there is none.
pub(super) fn replace_file(folder: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    crate::identity::make_private_dir(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(folder.join(name))?;
    Ok(())
}

impl Entry {
    fn fact<T: FromStr>(self) -> Option<Fact<T>> {
        Some(Fact {
            value: self.value.parse().ok()?,
            source: format!("{REMEMBERED}{}", self.source),
            at: UNIX_EPOCH.checked_add(Duration::from_secs(self.at))?,
        })
    }

    fn from_fact<T: ToString>(fact: &Fact<T>) -> Self {
        Self {
            value: fact.value.to_string(),
            source: fact.source.trim_start_matches(REMEMBERED).to_owned(),
            at: seconds(fact.at),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_across_lives_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let mut recalled = Facts::default();
        recall(&state, &mut recalled);
        assert_eq!(recalled, Facts::default());

        let facts = Facts {
            gateway: Some(Fact::now(
                "apps.example.com:443".parse().unwrap(),
                "gateway https://g:9202",
            )),
            ..Facts::default()
        };
        for _ in 0..2 {
            remember(&state, &facts).unwrap();
            recall(&state, &mut recalled);
            remember(&state, &recalled).unwrap();
        }
        recall(&state, &mut recalled);
        let gateway = recalled.gateway.clone().unwrap();
        assert!(gateway.is_remembered());
        assert_eq!(gateway.source, "remembered: gateway https://g:9202");
        assert_eq!(gateway.value.to_string(), "apps.example.com:443");
        assert_eq!(recalled.app_id, None);

        for junk in [
            "",
            "[]",
            "{\"gateway\":7}",
            r#"{"gateway":{"value":"a b","source":"","at":1}}"#,
        ] {
            std::fs::write(state.run().join(FILE), junk).unwrap();
            recall(&state, &mut recalled);
            assert_eq!(recalled.gateway, None, "{junk}");
        }
    }
}
