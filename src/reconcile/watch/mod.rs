//! Noticing that something changed: the events of `notify` where they come, a cheap look once a second where none does.
//!
//! An event is only a hint to look again: what is done depends on what is found, so that a lost or a
//! doubled event changes nothing. No event tells of a mount, nor of a file system that somebody else writes to. What
//! only a look finds counts when the next look finds the same, or half a file might be read.

mod events;
mod picture;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use events::{Events, Heed, What};
use picture::{Listings, Picture, signatures};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// As many links as the kernel follows on one way.
const LINKS: usize = 40;

/// How long to wait for more where nothing is being written.
const PIECE: Duration = Duration::from_millis(1);

/// Follows files and folders through renames, link swaps, mounts and replaced parents.
pub(super) struct Watch {
    events: Events,
    wished: Wished,
    made: Made,
    /// What was there when it was last read.
    seen: Picture,
    /// What the last look found, where that was something else.
    doubtful: Option<Picture>,
    listings: Listings,
    tick: tokio::time::Interval,
}

/// Where it says what is wished.
#[derive(Default)]
struct Wished {
    file: Option<PathBuf>,
    folder: Option<PathBuf>,
}

/// What was made of it: nobody else has any business there.
#[derive(Default)]
pub(super) struct Made {
    /// Leads to what is live.
    pub(super) link: PathBuf,
    /// Where it leads to.
    pub(super) target: Option<PathBuf>,
    pub(super) folders: Vec<PathBuf>,
}

/// Whether more may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ahead {
    /// All that was heard of was put in its place in one piece.
    Nothing,
    Perhaps,
}

impl Ahead {
    /// How long it has to be quiet before it is read, where otherwise it is this long.
    pub(super) fn quiet(self, debounce: Duration) -> Duration {
        match self {
            Self::Nothing => debounce.min(PIECE),
            Self::Perhaps => debounce,
        }
    }
}

impl Watch {
    /// Watches nothing until [`Watch::look`].
    pub(super) fn new() -> Self {
        Self::hearing(Events::new())
    }

    fn hearing(events: Events) -> Self {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            events,
            wished: Wished::default(),
            made: Made::default(),
            seen: Picture::new(),
            doubtful: None,
            listings: Listings::default(),
            tick,
        }
    }

    /// The file and what is in the folder are about to be read: whatever becomes of them from now on is a change.
    pub(super) fn look(&mut self, file: Option<&Path>, folder: Option<&Path>) {
        self.wished = Wished {
            file: file.map(Path::to_owned),
            folder: folder.map(Path::to_owned),
        };
        self.listen();
        self.seen = self.picture();
        self.doubtful = None;
    }

    /// This was made, and is to stay as it is now.
    pub(super) fn follow(&mut self, made: Made) {
        self.made = made;
        self.listen();
        self.seen.retain(|path, _| self.wished.has(path));
        self.listings = Listings::default();
        self.seen.extend(self.made.picture(&mut self.listings));
    }

    /// Returns when something may have changed. Cancel safe.
    pub(super) async fn changed(&mut self) -> Ahead {
        loop {
            tokio::select! {
                // Our own switch is an event, too.
                ahead = self.events.next(|path| *path != self.made.link || self.made.is_left()) => return ahead,
                _ = self.tick.tick() => {
                    let now = self.picture();
                    if now != self.seen && self.doubtful.as_ref() == Some(&now) {
                        return Ahead::Perhaps;
                    }
                    self.doubtful = Some(now);
                }
            }
        }
    }

    fn picture(&mut self) -> Picture {
        let mut picture = self.wished.picture(&mut self.listings);
        picture.extend(self.made.picture(&mut self.listings));
        picture
    }

    /// Hears of what is wished and made, and of nothing else.
    fn listen(&mut self) {
        let mut heed = Vec::new();
        let wished = self.wished.file.iter().chain(&self.wished.folder);
        for path in wished.clone().flat_map(|path| way(path)) {
            heed.extend(Heed::name(&path, What::Arrival));
        }
        // The file as well as its name: one that is mounted has no folder that would tell of it.
        heed.extend(wished.map(|path| Heed::all(path, What::Arrival)));
        heed.extend(Heed::name(&self.made.link, What::Any));
        heed.extend(self.made.folders.iter().map(|path| Heed::all(path, What::Any)));
        self.events.listen(heed);
    }
}

impl Wished {
    fn picture(&self, listings: &mut Listings) -> Picture {
        let folder = self.folder.iter().flat_map(|folder| listings.inside(folder));
        signatures(self.file.iter().cloned().chain(folder))
    }

    fn has(&self, path: &Path) -> bool {
        self.file.as_deref() == Some(path) || self.folder.as_deref() == path.parent()
    }
}

impl Made {
    fn picture(&self, listings: &mut Listings) -> Picture {
        let folders = self.folders.iter().flat_map(|folder| listings.inside(folder));
        signatures(folders.chain([self.link.clone()]))
    }

    fn is_left(&self) -> bool {
        std::fs::read_link(&self.link).ok() != self.target
    }
}

/// Every name that is passed on the way to a path, through all links: what is put in the place of any of them may be
/// a new content.
fn way(path: &Path) -> Vec<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> { path.iter().map(OsString::from).collect() };
    let mut way = Vec::new();
    let mut at = PathBuf::from("/");
    let mut ahead: VecDeque<_> = parts(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned())).into();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => {
                let here = at.join(name);
                way.push(here.clone());
                match std::fs::read_link(&here) {
                    Ok(target) if links < LINKS => {
                        links += 1;
                        parts(&target)
                            .into_iter()
                            .rev()
                            .for_each(|part| ahead.push_front(part));
                    }
                    _ => at = here,
                }
            }
            _ => {}
        }
    }
    way
}

#[cfg(test)]
mod tests;
