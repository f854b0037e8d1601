//! What processes cost, as the kernel counts it.

use std::fs;

/// User and system time of these processes since they started, in microseconds.
pub(crate) fn cpu(pids: &[i32]) -> u64 {
    spent(pids).iter().sum()
}

/// The system's part of it: what the kernel did for them.
pub(crate) fn kernel(pids: &[i32]) -> u64 {
    spent(pids)[1]
}

/// User time and system time, in microseconds.
fn spent(pids: &[i32]) -> [u64; 2] {
    let all: Vec<_> = pids.iter().filter_map(|pid| ticks(*pid)).collect();
    [0, 1].map(|which| all.iter().map(|ticks| ticks[which]).sum::<u64>() * (1_000_000 / ticks_per_second()))
}

/// proc(5), /proc/pid/stat: the fields after the command, which may hold spaces and is in parentheses.
fn ticks(pid: i32) -> Option<[u64; 2]> {
    const USER: usize = 11;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(USER);
    let mut next = || fields.next()?.parse().ok();
    Some([next()?, next()?])
}

fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    ticks.ok().flatten().map_or(100, |ticks| ticks as u64)
}

/// Resident memory of these processes, in bytes. What they share is counted for each.
pub(crate) fn resident(pids: &[i32]) -> u64 {
    pids.iter().map(|pid| memory(*pid, "VmRSS:")).sum()
}

/// The most that it was since [`forget_peak`], in bytes.
pub(crate) fn peak(pids: &[i32]) -> u64 {
    pids.iter().map(|pid| memory(*pid, "VmHWM:")).sum()
}

/// proc(5), /proc/pid/clear_refs.
pub(crate) fn forget_peak(pids: &[i32]) {
    for pid in pids {
        // Only root may ask it of processes of another user: then the peak is the one since the start.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// For people.
pub(crate) fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Open file descriptors of these processes.
pub(crate) fn descriptors(pids: &[i32]) -> u64 {
    let open = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    pids.iter().map(open).sum::<usize>() as u64
}
