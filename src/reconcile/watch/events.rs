//! What the kernel tells of files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Ahead;

/// How much may wait to be looked at: memory stays bounded in a storm.
const WAITING: usize = 1024;

/// The events of a changing set of files and folders.
pub(super) struct Events {
    /// `None`: the kernel gives us none.
    watcher: Option<RecommendedWatcher>,
    told: mpsc::Receiver<Told>,
    /// More was told than may wait.
    is_lost: Arc<AtomicBool>,
    /// What came last of what is worth knowing took a name that was there.
    replaced: bool,
    /// By inode: notify only knows names, and another may have come under the same one.
    heard: BTreeMap<(u64, u64), (PathBuf, Vec<Heed>)>,
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
    /// Something took a name, whole.
    Replaced,
    /// Who may read it and the like, which also changes of what has just been replaced.
    Touched,
    /// Something complete is there. What is being written will be closed, and what went away may be about to come back.
    Arrival,
    Any,
}

/// As notify's thread hands it over.
enum Told {
    Of(PathBuf, What),
    /// Of what, nobody knows.
    Lost,
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

    fn wants(&self, name: &Path, what: What) -> bool {
        self.name.as_ref().is_none_or(|wanted| Path::new(wanted) == name)
            && (self.what == What::Any || what != What::Any)
    }
}

impl Events {
    pub(super) fn new() -> Self {
        let (sender, told) = mpsc::channel(WAITING);
        let is_lost = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&is_lost);
        let made = notify::recommended_watcher(move |event| {
            if let Some(told) = told_by(event)
                && sender.try_send(told).is_err()
            {
                lost.store(true, Ordering::SeqCst);
                // If everything was taken before that was said, nobody would look.
                let _ = sender.try_send(Told::Lost);
            }
        });
        let mut events = Self {
            watcher: made.ok(),
            told,
            is_lost,
            replaced: false,
            heard: BTreeMap::new(),
            complained: false,
        };
        if events.told.is_closed() {
            // A watcher whose thread could not be started panics, even where it is dropped.
            std::mem::forget(events.watcher.take());
            events.complain("fs.inotify.max_user_instances");
        }
        events
    }

    #[cfg(test)]
    pub(super) fn deaf() -> Self {
        Self {
            watcher: None,
            told: mpsc::channel(1).1,
            is_lost: Arc::default(),
            replaced: false,
            heard: BTreeMap::new(),
            complained: true,
        }
    }

    /// From now on of these and no others.
    pub(super) fn listen(&mut self, wanted: Vec<Heed>) {
        self.replaced = false;
        let Some(watcher) = &mut self.watcher else { return };
        let mut heard: BTreeMap<_, (PathBuf, Vec<Heed>)> = BTreeMap::new();
        for heed in wanted {
            // What is not there will be created in a folder that is.
            let Ok(meta) = fs::metadata(&heed.at) else {
                continue;
            };
            heard
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| (heed.at.clone(), Vec::new()))
                .1
                .push(heed);
        }
        for (inode, (at, _)) in &self.heard {
            if heard.get(inode).is_none_or(|(now, _)| now != at) {
                // It has ended by itself where the folder is gone.
                let _ = watcher.unwatch(at);
            }
        }
        let mut is_full = false;
        heard.retain(|inode, (at, _)| {
            // Not again: in a storm the answer of notify's thread takes its time.
            if self.heard.get(inode).is_some_and(|(before, _)| before == at) {
                return true;
            }
            let watched = watcher.watch(at, RecursiveMode::NonRecursive);
            is_full |= watched
                .as_ref()
                .is_err_and(|error| matches!(error.kind, ErrorKind::MaxFilesWatch));
            watched.is_ok()
        });
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
    pub(super) async fn next(&mut self, is_news: impl Fn(&PathBuf) -> bool) -> Ahead {
        let mut all = Vec::new();
        loop {
            if self.told.recv_many(&mut all, WAITING).await == 0 {
                return std::future::pending().await;
            }
            let mut any = None;
            let mut is_lost = self.is_lost.swap(false, Ordering::SeqCst);
            for told in all.drain(..) {
                match told {
                    Told::Of(path, what) => {
                        if self.is_worth(&path, what) && is_news(&path) {
                            any = any.max(Some(self.ahead(what)));
                        }
                        if what == What::Any {
                            self.hear_again(&path);
                        }
                    }
                    Told::Lost => is_lost = true,
                }
            }
            if is_lost {
                self.hear_again(Path::new("/"));
            }
            // What was lost may have been anything.
            if is_lost {
                return Ahead::Perhaps;
            }
            if let Some(ahead) = any {
                return ahead;
            }
        }
    }

    fn ahead(&mut self, what: What) -> Ahead {
        match what {
            What::Replaced => self.replaced = true,
            What::Touched => {}
            What::Arrival | What::Any => self.replaced = false,
        }
        if self.replaced {
            Ahead::Nothing
        } else {
            Ahead::Perhaps
        }
    }

    fn is_worth(&self, path: &Path, what: What) -> bool {
        self.heard.values().any(|(at, heed)| {
            let name = path.strip_prefix(at);
            name.is_ok_and(|name| heed.iter().any(|heed| heed.wants(name, what)))
        })
    }

    /// Where something went away, notify hears no more, not even what has come in its place since.
    fn hear_again(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        self.heard.retain(|_, (at, _)| {
            if !at.starts_with(path) {
                return true;
            }
            let _ = watcher.unwatch(at);
            watcher.watch(at, RecursiveMode::NonRecursive).is_ok()
        });
    }
}

/// Decided at once, while what is there is still what the event is about. `None`: our own reading, or a single write
/// to a file, which is then half a file.
fn told_by(event: notify::Result<Event>) -> Option<Told> {
    let Ok(event) = event else { return Some(Told::Lost) };
    if event.need_rescan() {
        return Some(Told::Lost);
    }
    let path = event.paths.into_iter().next()?;
    let what = match event.kind {
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => What::Replaced,
        // A file's own attributes also change when it is deleted.
        EventKind::Modify(ModifyKind::Metadata(_)) => match fs::metadata(&path) {
            Ok(meta) if meta.nlink() > 0 => What::Touched,
            _ => What::Any,
        },
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => What::Arrival,
        EventKind::Create(_) if is_complete(&path) => What::Arrival,
        EventKind::Create(_)
        | EventKind::Modify(ModifyKind::Name(RenameMode::From))
        | EventKind::Remove(_) => What::Any,
        _ => return None,
    };
    Some(Told::Of(path, what))
}

/// Whether what was just created is all there: a link is, a folder is to be filled and a file to be written.
fn is_complete(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path);
    meta.is_ok_and(|meta| meta.is_symlink() || meta.is_file() && meta.nlink() > 1)
}
