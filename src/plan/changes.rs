//! What differs in files, and whether that means anything to those who read them.

use std::collections::{BTreeMap, BTreeSet};

use super::Present;
use crate::desired::{Desired, Reader};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    pub reader: Reader,
    pub before: Option<Vec<u8>>,
    pub after: Option<Vec<u8>>,
}

impl FileChange {
    /// What is said in it stays as it is: nobody has to read it again.
    pub fn is_of_mode(&self) -> bool {
        self.before == self.after
    }
}

pub(super) fn file_changes(desired: &Desired, present: &Present) -> Vec<FileChange> {
    let mut changes: Vec<_> = desired
        .files
        .iter()
        .filter(|(path, file)| {
            let other_mode = present.modes.get(*path).is_some_and(|mode| *mode != file.mode);
            other_mode || present.files.get(*path) != Some(&file.bytes)
        })
        .map(|(path, file)| FileChange {
            path: path.clone(),
            reader: file.reader,
            before: present.files.get(path).cloned(),
            after: Some(file.bytes.clone()),
        })
        .collect();
    changes.extend(
        present
            .files
            .iter()
            .filter(|(path, _)| !desired.files.contains_key(*path))
            .map(|(path, bytes)| FileChange {
                path: path.clone(),
                reader: Reader::of(path),
                before: Some(bytes.clone()),
                after: None,
            }),
    );
    changes
}

/// What differs between the files of two generations.
pub(super) fn changes(
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
) -> Vec<FileChange> {
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    let changes = changed.map(|path| FileChange {
        path: path.clone(),
        reader: Reader::of(path),
        before: before.get(path).cloned(),
        after: after.get(path).cloned(),
    });
    changes.collect()
}

pub(super) fn touched(files: &[FileChange], reader: Reader) -> bool {
    files
        .iter()
        .any(|change| change.reader == reader && !change.is_of_mode())
}

/// Whether it has to be started anew for its files. What somebody wrote there since it read them means nothing to it.
pub(super) fn headscale_reads_other(files: &[FileChange], desired: &Desired, present: &Present) -> bool {
    let read = present
        .headscale_read
        .as_ref()
        .filter(|_| touched(files, Reader::Headscale));
    let Some(read) = read else {
        return meaning_changed(files);
    };
    let wanted = desired
        .files
        .iter()
        .filter(|(_, file)| file.reader == Reader::Headscale);
    let wanted = wanted.map(|(path, file)| (path.clone(), file.bytes.clone()));
    meaning_changed(&changes(read, &wanted.collect()))
}

/// Whether Headscale would read anything else: comments, order and the way of quoting mean nothing to it. A file
/// that is no YAML to us may be some to Headscale.
pub(super) fn meaning_changed(files: &[FileChange]) -> bool {
    let meaning = |bytes: &Option<Vec<u8>>| -> Option<serde_json::Value> {
        serde_saphyr::from_slice(bytes.as_deref()?).ok()
    };
    let mut files = files.iter().filter(|change| change.reader == Reader::Headscale);
    files.any(|change| match (meaning(&change.before), meaning(&change.after)) {
        (Some(before), Some(after)) => before != after,
        _ => true,
    })
}
