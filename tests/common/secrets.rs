//! The secrets of a machine, and the places where they must not be: every machine of every test is searched at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::process::Process;

/// Below the state directory: where secrets are kept, with a mode of their own.
const KEPT: [&str; 6] = [
    "identity",
    "secrets",
    "headscale",
    "tailscale",
    "registry",
    // Local apps read it there.
    "vpc/0/shared_key",
];

/// Shorter ones could be found by chance.
const SHORTEST: usize = 20;

/// What is secret, and where it was found.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<String, BTreeSet<String>>);

impl Secrets {
    /// Those that a machine keeps at this moment.
    pub fn of(state: &Path) -> Self {
        let mut all = Self::default();
        all.look(state);
        all
    }

    /// Takes what has come since.
    pub fn look(&mut self, state: &Path) {
        for folder in ["identity", "secrets", "headscale", "tailscale"] {
            for path in files(&state.join(folder)) {
                let what = path.display().to_string();
                let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                self.of_file(&what, text.unwrap_or_default().trim());
            }
        }
    }

    /// One that was had in another way.
    pub fn add(&mut self, what: &str, secret: &str) {
        let is_set = secret.bytes().any(|byte| byte != b'0');
        if secret.len() >= SHORTEST && is_set {
            self.0
                .entry(secret.to_owned())
                .or_default()
                .insert(what.to_owned());
        }
    }

    fn of_file(&mut self, what: &str, text: &str) {
        // A key of its own, as PEM: the first line holds most of it.
        if let Some((_, key)) = text.split_once("PRIVATE KEY-----\n") {
            self.add(what, key.lines().next().unwrap_or_default());
        }
        // Of Headscale and Tailscale.
        if let Some(key) = text.strip_prefix("privkey:") {
            self.add(what, key);
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => {
                for (name, value) in &fields {
                    self.of_field(what, name, value);
                }
            }
            _ if what.contains("/secrets/") && !text.contains(char::is_whitespace) => {
                self.add(what, text);
                // Headscale names keys by what stands before the last part.
                if let Some((_, secret)) = text.rsplit_once(['.', '-']) {
                    self.add(what, secret);
                }
            }
            _ => {}
        }
    }

    fn of_field(&mut self, what: &str, name: &str, value: &Value) {
        let Some(text) = value.as_str() else { return };
        if name.contains("key") {
            self.add(what, text.trim_start_matches("privkey:"));
        }
        // tailscaled keeps JSON and keys in base64.
        let inner = STANDARD.decode(text).unwrap_or_default();
        let inner = String::from_utf8_lossy(&inner);
        for part in inner.split("privkey:").skip(1) {
            let end = part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len());
            self.add(what, &part[..end]);
        }
    }

    /// The kinds of places that they come from.
    pub fn have(&self, words: &str) -> bool {
        self.0.values().flatten().any(|what| what.contains(words))
    }

    /// Says which of them stand in `text`.
    pub fn in_text(&self, place: &str, text: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(secret, _)| text.contains(secret.as_str()));
        found
            .map(|(_, what)| format!("what is secret in {what:?} stands in {place}"))
            .collect()
    }

    /// In arguments, environments, and in every file below `dir` but those that keep them; and core files, whatever
    /// stands in them.
    pub fn leaks(&self, dir: &Path, state: &Path, processes: &[Process]) -> Vec<String> {
        let kept = KEPT.map(|place| state.join(place));
        let mut leaks = Vec::new();
        for path in files(dir) {
            if kept.iter().any(|kept| path.starts_with(kept)) {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "core" || name.starts_with("core.") {
                leaks.push(format!("{} is a core file", path.display()));
            }
            // What ends and is removed meanwhile holds nothing any more.
            if let Ok(bytes) = fs::read(&path) {
                let place = path.display().to_string();
                leaks.extend(self.in_text(&place, &String::from_utf8_lossy(&bytes)));
            }
        }
        for process in processes {
            leaks.extend(self.in_text(&format!("the arguments of {}", process.pid), &process.command));
            let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            let place = format!("the environment of {} ({})", process.pid, process.command);
            leaks.extend(self.in_text(&place, &String::from_utf8_lossy(&environ)));
        }
        leaks
    }
}

/// Files with secrets that others can read: neither they nor the folder they lie in keep them out.
pub fn open_to_others(state: &Path) -> Vec<PathBuf> {
    let open = |path: &Path| {
        let mode = fs::metadata(path).map_or(0, |about| about.permissions().mode());
        mode & 0o077 != 0
    };
    let folders = KEPT[..5].iter().map(|folder| state.join(folder));
    let kept = folders
        .filter(|folder| open(folder))
        .flat_map(|folder| files(&folder));
    // Certificates are for everybody.
    let secret = |path: &PathBuf| {
        let text = fs::read(path).unwrap_or_default();
        !text.starts_with(b"-----BEGIN CERTIFICATE")
    };
    kept.filter(|path| open(path)).filter(secret).collect()
}

/// Every file below a folder; links are not followed.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![dir.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => queue.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}
