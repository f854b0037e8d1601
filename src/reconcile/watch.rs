//! Noticing that something changed: inotify where it works, a cheap look once a second where it does not.
//!
//! An event is only a hint to look again: what is done depends on what is found, so that a lost or a
//! doubled event changes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// How often the file is looked at where no event comes (network file systems, a replaced folder).
const LOOK: Duration = Duration::from_secs(1);

/// Follows files and folders through renames, link swaps and replaced parents.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// What is watched, with the inode it was when the watch was set.
    set: BTreeMap<PathBuf, Option<(u64, u64)>>,
    /// The file whose signature is polled.
    file: Option<PathBuf>,
    seen: Option<Signature>,
    events: mpsc::Receiver<()>,
    tick: tokio::time::Interval,
}

type Signature = (u64, u64, i64, i64, u64);

impl Watch {
    /// Watches nothing until [`Watch::follow`].
    pub(super) fn new() -> Self {
        // One waiting hint is enough: the reader looks at everything anyway.
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| matters(&event)) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(
                |error| tracing::warn!(%error, "no file events here: files are looked at once a second"),
            )
            .ok();
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            watcher,
            set: BTreeMap::new(),
            file: None,
            seen: None,
            events,
            tick,
        }
    }

    /// Follows `file` (through every link that leads to it) and the given folders.
    pub(super) fn follow(&mut self, file: Option<&Path>, folders: impl IntoIterator<Item = PathBuf>) {
        let mut wanted: Vec<PathBuf> = file.map(folders_on_the_way).unwrap_or_default();
        wanted.extend(folders);
        let wanted: BTreeMap<_, _> = wanted
            .into_iter()
            .map(|path| (inode(&path), path))
            .map(|(i, p)| (p, i))
            .collect();
        self.file = file.map(Path::to_owned);
        self.seen = self.file.as_deref().and_then(signature);
        let Some(watcher) = &mut self.watcher else { return };
        let gone: Vec<_> = self
            .set
            .iter()
            .filter(|(path, inode)| wanted.get(*path) != Some(inode))
            .collect();
        for (path, _) in gone {
            let _ = watcher.unwatch(path);
        }
        for (path, inode) in &wanted {
            if self.set.get(path) != Some(inode) {
                // What cannot be watched is still looked at once a second.
                let _ = watcher.watch(path, RecursiveMode::NonRecursive);
            }
        }
        self.set = wanted;
    }

    /// Returns when something may have changed. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(()) => return,
                    None => std::future::pending().await,
                },
                _ = self.tick.tick() => {
                    let now = self.file.as_deref().and_then(signature);
                    let replaced = self.set.iter().any(|(path, was)| inode(path) != *was);
                    if now != self.seen || replaced {
                        self.seen = now;
                        return;
                    }
                }
            }
        }
    }
}

/// Reading is not a change; everything else, an overflow of the queue included, may be one.
fn matters(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => event.need_rescan(),
        _ => true,
    }
}

/// The folder of the file and of each link on the way to it: a change in any of them may be a new content.
fn folders_on_the_way(file: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    for _ in 0..16 {
        let Some(parent) = path.parent().map(Path::to_owned) else {
            break;
        };
        let target = std::fs::read_link(&path);
        folders.push(parent.clone());
        match target {
            Ok(target) => path = parent.join(target),
            Err(_) => break,
        }
    }
    folders
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn signature(path: &Path) -> Option<Signature> {
    let meta = std::fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.size(),
    ))
}
