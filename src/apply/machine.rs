//! The seam: all that apply does to the machine goes through [`Machine`], so that a test can fail, delay
//! or stop it at any single step.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::desired::{ListenerSettings, Probe, Reader};
use crate::plan::{ActionKind, Service};

/// One method, one step. Files first, then the programs.
pub trait Machine: Send + Sync {
    /// A file and its mode; a link is none.
    fn open(&self, path: &Path) -> io::Result<(Vec<u8>, u32)>;

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.open(path).map(|(bytes, _)| bytes)
    }

    /// Names in a folder, sorted; an absent folder is empty.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Where a link points; `None` when there is no link.
    fn read_link(&self, path: &Path) -> io::Result<Option<PathBuf>>;

    /// Creates a folder with this mode, and what is missing above it.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Creates a file that must not exist yet, with this mode from its first moment.
    fn write_new(&self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()>;

    /// Makes the bytes of a file durable, or the names in a folder.
    fn sync(&self, path: &Path) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()>;

    /// Removes a file, a link or a whole tree; absent is fine.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Why an address cannot be listened on, in words that say who has it; `None`: it is free, or our own nginx has
    /// it.
    fn why_not(&self, addr: SocketAddr, nginx: Option<i32>) -> Option<String>;

    /// Lets a consumer look at its file in a staged generation; the error is its own words.
    fn check(&self, reader: Reader, staged: &Path) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends workers of nginx whose master was killed: they would go on serving an old configuration for ever, and
    /// keep the ports from the next master. True when there were some. A master that was held goes on.
    fn end_orphans(&self) -> bool;

    /// What supervisord says of its programs; `None`: it cannot be reached.
    fn services(&self) -> impl Future<Output = Option<BTreeMap<String, Service>>> + Send;

    /// The running programs that an action is about to stop, and when each was started.
    fn ends(
        &self,
        action: ActionKind,
    ) -> impl Future<Output = Result<BTreeMap<String, SystemTime>, String>> + Send;

    /// Carries out one action; `listeners` is for those that the daemon serves itself.
    fn act(
        &self,
        action: ActionKind,
        listeners: &ListenerSettings,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Workers of nginx that accept connections now.
    fn workers(&self, nginx: i32) -> Vec<i32>;

    /// Waits until every listener answers with the tag and none of `old_workers` accepts any more.
    fn prove(
        &self,
        probes: &[Probe],
        tag: &str,
        old_workers: &[i32],
        within: Duration,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// The new state is proven: let go of what only the old one needed.
    fn settle(&self) -> impl Future<Output = ()> + Send;
}
