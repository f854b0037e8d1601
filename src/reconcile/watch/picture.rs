//! What there is, as a cheap look sees it: who opens a folder wakes everybody who watches it, us before all.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No file system keeps its times more coarsely than this: two changes further apart have different ones.
const GRAIN: Duration = Duration::from_secs(2);

/// Files, behind whatever links, and what tells one content from another.
pub(super) type Picture = BTreeMap<PathBuf, Signature>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    inode: (u64, u64),
    size: u64,
    /// Unlike the time of the last write, nobody can set it back.
    changed: (i64, i64),
}

/// What is in folders, read again only where it may be something else.
#[derive(Default)]
pub(super) struct Listings(BTreeMap<PathBuf, Listing>);

struct Listing {
    folder: Signature,
    /// When the folder was first seen like this.
    since: Instant,
    read: Instant,
    names: Vec<PathBuf>,
}

/// Of those that are there.
pub(super) fn signatures(paths: impl IntoIterator<Item = PathBuf>) -> Picture {
    let known = |path: PathBuf| Some((signature(&path)?, path));
    let known = paths.into_iter().filter_map(known);
    known.map(|(signature, path)| (path, signature)).collect()
}

fn signature(path: &Path) -> Option<Signature> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Signature {
        inode: (meta.dev(), meta.ino()),
        size: meta.size(),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

impl Listings {
    pub(super) fn inside(&mut self, folder: &Path) -> Vec<PathBuf> {
        self.inside_at(folder, Instant::now())
    }

    fn inside_at(&mut self, folder: &Path, now: Instant) -> Vec<PathBuf> {
        let Some(signature) = signature(folder) else {
            self.0.remove(folder);
            return Vec::new();
        };
        let before = self.0.get(folder).filter(|it| it.folder == signature);
        if let Some(before) = before.filter(|it| it.is_final()) {
            return before.names.clone();
        }
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let listing = Listing {
            folder: signature,
            since: before.map_or(now, |it| it.since),
            read: now,
            names: entries.map(|entry| entry.path()).collect(),
        };
        let names = listing.names.clone();
        self.0.insert(folder.to_owned(), listing);
        names
    }
}

impl Listing {
    /// Whatever comes or goes after it was read changes the folder's signature.
    fn is_final(&self) -> bool {
        self.read.duration_since(self.since) >= GRAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_is_read_until_no_change_could_hide_in_the_grain_of_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut listings = Listings::default();
        let begin = Instant::now();
        let read = |listings: &mut Listings, seconds| {
            listings.inside_at(folder.path(), begin + Duration::from_secs(seconds));
            listings.0[folder.path()].read.duration_since(begin).as_secs()
        };
        assert_eq!([0, 1, 2, 3, 9].map(|at| read(&mut listings, at)), [0, 1, 2, 2, 2]);
        fs::write(folder.path().join("new"), "").unwrap();
        assert_eq!(listings.inside(folder.path()), [folder.path().join("new")]);
        fs::remove_file(folder.path().join("new")).unwrap();
        assert_eq!(listings.inside(folder.path()), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn a_folder_that_is_gone_or_another_is_not_remembered() {
        let above = tempfile::tempdir().unwrap();
        let [folder, other] = ["folder", "other"].map(|name| above.path().join(name));
        let begin = Instant::now();
        let mut listings = Listings::default();
        let names = |listings: &mut Listings, seconds| {
            let names = listings.inside_at(&folder, begin + Duration::from_secs(seconds));
            names
                .iter()
                .map(|it| it.strip_prefix(&folder).unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        for (made, name) in [(&folder, "a"), (&other, "b")] {
            fs::create_dir(made).unwrap();
            fs::write(made.join(name), "").unwrap();
        }
        assert_eq!(
            [0, 5].map(|at| names(&mut listings, at)),
            [["a"], ["a"]].map(|it| it.map(PathBuf::from).to_vec())
        );
        fs::rename(&folder, above.path().join("away")).unwrap();
        assert_eq!(names(&mut listings, 10), Vec::<PathBuf>::new());
        fs::rename(&other, &folder).unwrap();
        assert_eq!(names(&mut listings, 15), [PathBuf::from("b")]);
    }
}
