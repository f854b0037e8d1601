//! Generations on disk: staged beside the live one, complete once renamed, live by one rename of a link.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::machine::Machine;
use crate::desired::{Desired, NGINX, Probe, Program};
use crate::paths::StateDir;
use crate::plan::{Socket, sockets};

/// Describes a generation, beside its files.
pub const MANIFEST: &str = "manifest.json";

/// What a generation says of itself, beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub tag: String,
    pub probes: Vec<Probe>,
    /// SHA-256 of each file by path: whatever differs on disk was edited by somebody else.
    pub files: BTreeMap<String, String>,
    /// The facts it was made from, by key.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
    /// Why it was made.
    pub cause: String,
    /// RFC 3339.
    pub made_at: String,
}

/// An I/O error with the step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {source}")]
pub struct DiskError {
    pub doing: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

pub(super) fn doing<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |source| DiskError {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// The folder of generation `number`.
pub fn dir(state: &StateDir, number: u32) -> PathBuf {
    state.generations().join(format!("{number:06}"))
}

/// Numbers of the complete generations, oldest first.
pub fn all<M: Machine>(machine: &M, state: &StateDir) -> io::Result<Vec<u32>> {
    let names = machine.list(&state.generations())?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn number_of(name: &str) -> Option<u32> {
    let digits = name.len() >= 6 && name.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// The number that `current` points to, if it points to a generation of ours.
pub fn current<M: Machine>(machine: &M, state: &StateDir) -> io::Result<Option<u32>> {
    let Some(target) = machine.read_link(&state.current())? else {
        return Ok(None);
    };
    let ours = target.parent() == Some(Path::new("generations"));
    let name = target.file_name().and_then(|name| name.to_str());
    Ok(name.filter(|_| ours).and_then(number_of))
}

/// The sockets that nginx opens when it reads a generation. While its file cannot be read, the manifest tells.
pub(super) fn nginx_sockets<M: Machine>(
    machine: &M,
    state: &StateDir,
    number: u32,
    files: &BTreeMap<String, Vec<u8>>,
) -> BTreeSet<Socket> {
    match files.get(NGINX) {
        Some(conf) => sockets(conf),
        None => {
            let probes = manifest(machine, state, number).map(|manifest| manifest.probes);
            let probes = probes.into_iter().flatten();
            let fronts = probes.filter(|probe| probe.of == Program::Nginx);
            fronts.map(|probe| Socket::at(probe.listen)).collect()
        }
    }
}

/// Reads a generation's files as they are now; a file that cannot be read counts as absent.
pub fn files<M: Machine>(machine: &M, state: &StateDir, number: u32) -> BTreeMap<String, Vec<u8>> {
    let files = files_and_modes(machine, state, number).into_iter();
    files.map(|(path, (bytes, _))| (path, bytes)).collect()
}

pub(super) fn files_and_modes<M: Machine>(
    machine: &M,
    state: &StateDir,
    number: u32,
) -> BTreeMap<String, (Vec<u8>, u32)> {
    let root = dir(state, number);
    let mut files = BTreeMap::new();
    for folder in machine.list(&root).unwrap_or_default() {
        if folder == MANIFEST {
            continue;
        }
        for name in machine.list(&root.join(&folder)).unwrap_or_default() {
            let path = format!("{folder}/{name}");
            if let Ok(file) = machine.open(&root.join(&path)) {
                files.insert(path, file);
            }
        }
    }
    files
}

/// Whether a generation has the desired files and no others.
pub(super) fn is_just<M: Machine>(machine: &M, state: &StateDir, number: u32, desired: &Desired) -> bool {
    let there = files(machine, state, number);
    let wanted = desired.files.iter().map(|(path, file)| (path, &file.bytes));
    manifest(machine, state, number).is_some() && there.iter().eq(wanted)
}

/// Reads a generation's manifest; `None` when it is missing or damaged.
pub fn manifest<M: Machine>(machine: &M, state: &StateDir, number: u32) -> Option<Manifest> {
    let bytes = machine.read(&dir(state, number).join(MANIFEST)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

impl Manifest {
    /// Describes what is about to be written.
    pub fn of(desired: &Desired, cause: &str) -> Self {
        Self {
            tag: desired.tag.clone(),
            probes: desired.probes.clone(),
            files: desired
                .files
                .iter()
                .map(|(path, file)| (path.clone(), digest(&file.bytes)))
                .collect(),
            facts: desired.facts.clone(),
            cause: cause.to_owned(),
            made_at: jiff::Timestamp::now().to_string(),
        }
    }

    /// Paths whose bytes on disk are not those that were written.
    pub fn drifted(&self, on_disk: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let edited = |(path, hash): &(&String, &String)| {
            on_disk.get(*path).map(|bytes| digest(bytes)).as_ref() != Some(*hash)
        };
        let foreign = on_disk.keys().filter(|path| !self.files.contains_key(*path));
        self.files
            .iter()
            .filter(edited)
            .map(|(path, _)| path)
            .chain(foreign)
            .cloned()
            .collect()
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Where generation `number` is written before it is complete: nothing looks there but the checkers.
pub(super) fn staged(state: &StateDir, number: u32) -> PathBuf {
    dir(state, number).with_extension("tmp")
}

/// Writes everything below `staged`; returns what [`sync`] is to make durable.
pub(super) fn stage<M: Machine>(
    machine: &M,
    staged: &Path,
    desired: &Desired,
    cause: &str,
) -> Result<Vec<PathBuf>, DiskError> {
    machine.remove(staged).map_err(doing("removing", staged))?;
    machine
        .make_dir(staged, 0o755)
        .map_err(doing("creating", staged))?;
    let mut folders = BTreeSet::from([staged.to_owned()]);
    let mut written = Vec::new();
    let mut write = |path: PathBuf, mode, bytes: &[u8]| {
        machine
            .write_new(&path, mode, bytes)
            .map_err(doing("writing", &path))?;
        written.push(path);
        Ok::<_, DiskError>(())
    };
    for (path, file) in &desired.files {
        let path = staged.join(path);
        let folder = path.parent().unwrap_or(staged).to_owned();
        if folders.insert(folder.clone()) {
            machine
                .make_dir(&folder, 0o755)
                .map_err(doing("creating", &folder))?;
        }
        write(path, file.mode, &file.bytes)?;
    }
    let manifest = serde_json::to_vec_pretty(&Manifest::of(desired, cause)).expect("plain data serialises");
    write(staged.join(MANIFEST), 0o600, &manifest)?;
    written.extend(folders);
    Ok(written)
}

/// Makes files and folders durable.
pub(super) fn sync<M: Machine>(machine: &M, paths: &[PathBuf]) -> Result<(), DiskError> {
    paths
        .iter()
        .try_for_each(|path| machine.sync(path).map_err(doing("syncing", path)))
}

/// Makes a staged generation a complete one.
pub(super) fn complete<M: Machine>(machine: &M, state: &StateDir, number: u32) -> Result<(), DiskError> {
    let (all, done) = (state.generations(), dir(state, number));
    machine
        .rename(&staged(state, number), &done)
        .map_err(doing("renaming to", &done))?;
    machine.sync(&all).map_err(doing("syncing", &all))
}

/// Points `current` at a generation by one rename.
pub(super) fn switch<M: Machine>(machine: &M, state: &StateDir, number: u32) -> Result<(), DiskError> {
    let link = state.current();
    let new = link.with_extension("tmp");
    let target = Path::new("generations").join(format!("{number:06}"));
    machine.remove(&new).map_err(doing("removing", &new))?;
    let now = machine.read_link(&link).map_err(doing("reading", &link))?;
    if now.is_none() {
        // Somebody's folder: no link could be renamed to it.
        machine.remove(&link).map_err(doing("removing", &link))?;
    }
    let linked = machine
        .symlink(&target, &new)
        .map_err(doing("linking", &new))
        .and_then(|()| machine.rename(&new, &link).map_err(doing("switching", &link)));
    if linked.is_err() {
        let _ = machine.remove(&new);
    }
    linked?;
    machine.sync(state.root()).map_err(doing("syncing", state.root()))
}

/// Removes the oldest generations beyond `keep`, never one that is in use.
pub(super) fn prune<M: Machine>(
    machine: &M,
    state: &StateDir,
    keep: usize,
    in_use: &[u32],
) -> Result<(), DiskError> {
    let folder = state.generations();
    let numbers = all(machine, state).map_err(doing("listing", &folder))?;
    let excess = numbers.len().saturating_sub(keep.max(1));
    let old = numbers
        .into_iter()
        .take(excess)
        .filter(|n| !in_use.contains(n))
        .collect();
    remove(machine, state, old)
}

/// Removes generations so that, wherever that ends, none is left that is not complete: each loses its number first.
pub(super) fn remove<M: Machine>(
    machine: &M,
    state: &StateDir,
    mut numbers: Vec<u32>,
) -> Result<(), DiskError> {
    let folder = state.generations();
    let there = all(machine, state).map_err(doing("listing", &folder))?;
    numbers.sort_unstable();
    numbers.dedup();
    numbers.retain(|number| there.contains(number));
    if numbers.is_empty() {
        return Ok(());
    }
    for number in &numbers {
        let (from, to) = (dir(state, *number), staged(state, *number));
        machine.remove(&to).map_err(doing("removing", &to))?;
        machine.rename(&from, &to).map_err(doing("renaming to", &to))?;
    }
    machine.sync(&folder).map_err(doing("syncing", &folder))?;
    for number in &numbers {
        let path = staged(state, *number);
        machine.remove(&path).map_err(doing("removing", &path))?;
    }
    Ok(())
}
