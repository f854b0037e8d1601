//! What the kernel tells of files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::reconcile::readable::readable;

/// Not every single write: a file that is being written is half a file.
const TOLD: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF);

/// The events of a changing set of files and folders.
pub(super) struct Events {
    /// `None`: the kernel gives us none.
    inotify: Option<AsyncFd<OwnedFd>>,
    heard: BTreeMap<i32, (PathBuf, Vec<Heed>)>,
    /// It was said that some are not heard of.
    complained: bool,
}

/// What is worth knowing.
pub(super) struct Heed {
    /// A folder, or a file for itself.
    at: PathBuf,
    /// Only this name in it.
    name: Option<OsString>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Something complete is there. What is being written will be closed, and what went away may be about to come back.
    Arrival,
    Any,
}

impl Heed {
    /// What becomes of a name, whoever has it.
    pub(super) fn name(path: &Path, what: What) -> Option<Self> {
        Some(Self {
            at: path.parent()?.to_owned(),
            name: Some(path.file_name()?.to_owned()),
            what,
        })
    }

    /// What becomes of a file, or of everything in a folder.
    pub(super) fn all(path: &Path, what: What) -> Self {
        Self {
            at: path.to_owned(),
            name: None,
            what,
        }
    }

    fn wants(&self, name: Option<&OsStr>, flags: ReadFlags, path: &Path) -> bool {
        if self.name.is_some() && self.name.as_deref() != name {
            return false;
        }
        match self.what {
            What::Any => !flags.contains(ReadFlags::IGNORED),
            // A file's own attributes also change when it is deleted.
            What::Arrival if name.is_none() => flags.contains(ReadFlags::CLOSE_WRITE),
            What::Arrival if flags.contains(ReadFlags::CREATE) => is_complete(path),
            What::Arrival => {
                flags.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO | ReadFlags::ATTRIB)
            }
        }
    }
}

/// Whether what was just created is all there: a link is, a folder is to be filled and a file to be written.
fn is_complete(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path);
    meta.is_ok_and(|meta| meta.is_symlink() || meta.is_file() && meta.nlink() > 1)
}

impl Events {
    pub(super) fn new() -> Self {
        let made = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let mut events = Self {
            inotify: made.ok().and_then(readable),
            heard: BTreeMap::new(),
            complained: false,
        };
        if events.inotify.is_none() {
            events.complain("fs.inotify.max_user_instances");
        }
        events
    }

    #[cfg(test)]
    pub(super) fn deaf() -> Self {
        Self {
            inotify: None,
            heard: BTreeMap::new(),
            complained: true,
        }
    }

    /// From now on of these and no others.
    pub(super) fn listen(&mut self, wanted: Vec<Heed>) {
        let Some(inotify) = &self.inotify else { return };
        let mut heard: BTreeMap<_, (PathBuf, Vec<Heed>)> = BTreeMap::new();
        let mut is_full = false;
        for heed in wanted {
            // The same again where it is heard already. What is not there will be created in a folder that is.
            match inotify::add_watch(inotify, &heed.at, TOLD) {
                Ok(id) => heard
                    .entry(id)
                    .or_insert_with(|| (heed.at.clone(), Vec::new()))
                    .1
                    .push(heed),
                Err(error) => is_full |= error == rustix::io::Errno::NOSPC,
            }
        }
        for id in self.heard.keys().filter(|id| !heard.contains_key(id)) {
            // It has ended by itself where the folder is gone.
            let _ = inotify::remove_watch(inotify, *id);
        }
        self.heard = heard;
        if is_full {
            self.complain("fs.inotify.max_user_watches");
        }
    }

    fn complain(&mut self, limit: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                "file events are missing, so files are looked at once a second: raise {limit} on the host"
            );
        }
    }

    /// Returns when something happened that is worth knowing and that `is_news` to the caller. Cancel safe.
    pub(super) async fn next(&self, is_news: impl Fn(&PathBuf) -> bool) {
        let Some(inotify) = &self.inotify else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = inotify.readable().await else {
                return std::future::pending().await;
            };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            let mut any = false;
            while let Ok(event) = reader.next() {
                any |= self.is_worth(&event, &is_news);
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }

    fn is_worth(&self, event: &inotify::Event<'_>, is_news: impl Fn(&PathBuf) -> bool) -> bool {
        let flags = event.events();
        // What was lost may have been anything.
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return true;
        }
        let Some((folder, heed)) = self.heard.get(&event.wd()) else {
            return false;
        };
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
        let path = name.map_or_else(|| folder.clone(), |name| folder.join(name));
        heed.iter().any(|heed| heed.wants(name, flags, &path)) && is_news(&path)
    }
}
