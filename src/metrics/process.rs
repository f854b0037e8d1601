//! The daemon as the kernel sees it, under the names that all Prometheus clients use.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// What could be read.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// User and system, in seconds.
    pub(super) cpu: Option<f64>,
    /// In bytes.
    pub(super) resident: Option<u64>,
    /// In bytes.
    pub(super) virtual_: Option<u64>,
    pub(super) fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: Option<u64>,
}

impl Process {
    pub(super) fn look() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        let mut sizes = pages
            .split_ascii_whitespace()
            .map_while(|pages| pages.parse::<u64>().ok())
            .map(|pages| pages * page);
        let entries = |dir| fs::read_dir(dir).ok().map(|entries| entries.count() as u64);
        Self {
            cpu: usage.map(|usage| seconds(usage.user_time()) + seconds(usage.system_time())),
            virtual_: sizes.next(),
            resident: sizes.next(),
            // One of them is for looking.
            fds: entries("/proc/self/fd").map(|open| open.saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            threads: entries("/proc/self/task"),
        }
    }
}
