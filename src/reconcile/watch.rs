//! Noticing that something changed: inotify where it works, a cheap look once a second where it does not.
//!
//! An event is only a hint to look again: what is done depends on what is found, so that a lost or a
//! doubled event changes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
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

    /// The file is about to be read: whatever becomes of it from now on is a change. Said before reading, because a
    /// swap of a folder above it, which no event tells, may come while what was read is being brought about.
    pub(super) fn look(&mut self, file: Option<&Path>) {
        self.file = file.map(Path::to_owned);
        self.seen = self.file.as_deref().and_then(signature);
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

/// Reading is not a change; everything else, an overflow of the queue included, may be one. A file that is being
/// written is half a file: its close tells, and the look once a second finds the writer that never closes.
fn matters(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => event.need_rescan(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    async fn noticed(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(20), watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_folder_swapped_while_the_file_is_brought_about_is_a_change() {
        let home = tempfile::tempdir().unwrap();
        let (old, new, conf) = (
            home.path().join("1"),
            home.path().join("2"),
            home.path().join("conf"),
        );
        for dir in [&old, &new] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("vpc.toml"), "").unwrap();
        }
        symlink(&old, &conf).unwrap();
        let file = conf.join("vpc.toml");
        let mut watch = Watch::new();
        watch.look(Some(&file));
        // Here the file is read and made live.
        symlink(&new, home.path().join("next")).unwrap();
        fs::rename(home.path().join("next"), &conf).unwrap();
        watch.follow(Some(&file), []);
        assert!(noticed(&mut watch).await);
    }

    #[tokio::test]
    async fn a_file_counts_when_its_writer_is_done() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("vpc.toml");
        fs::write(&file, "role").unwrap();
        let mut watch = Watch::new();
        watch.look(Some(&file));
        watch.follow(Some(&file), []);
        let mut writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
        std::io::Write::write_all(&mut writer, b" = ").unwrap();
        // Only what events tell is asked for here, not the look once a second.
        assert!(tokio::time::timeout(LOOK / 2, watch.events.recv()).await.is_err());
        drop(writer);
        assert!(noticed(&mut watch).await);
    }
}
