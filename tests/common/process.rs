//! Looking at processes through /proc, and ending a tree of them by pid.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running process.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Words joined by spaces.
    pub command: String,
}

/// Every process that can be seen now.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(look)
        .collect()
}

fn look(pid: i32) -> Option<Process> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command)
        .replace('\0', " ")
        .trim_end()
        .to_owned();
    let parent = field(pid, "PPid:")?.parse().ok()?;
    Some(Process { pid, parent, command })
}

fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.to_owned())
}

/// Resident memory in KiB; 0 for a process that is gone.
pub fn resident(pid: i32) -> u64 {
    field(pid, "VmRSS:").and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// When a process was started, in ticks since boot: with the pid it names a process for good.
pub fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the 20th field after it is the time.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A process whose first thread is a zombie still has its files and locks until its last thread is one.
pub fn is_alive(pid: i32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    field(pid, "State:").is_some_and(|state| state != "Z" || threads() > 1)
}

/// What is left of every process that some processes ever started: those that run, and what those that ended cost
/// their parents. Equal traces: nothing was started in between, however short its life.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces(BTreeMap<i32, (Option<u64>, Option<u64>)>);

impl Traces {
    pub fn of(processes: &[Process]) -> Self {
        let all = processes
            .iter()
            .map(|it| (it.pid, (started(it.pid), faults_of_children(it.pid))));
        Self(all.collect())
    }
}

/// Page faults of the children that ended and were waited for. No process lives without some.
fn faults_of_children(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(8)?.parse().ok()
}

/// `root` and all below it, parents first, and every process whose command line names `place`
/// with all below that: children of a killed supervisor are found by the second.
pub fn tree(root: i32, place: &Path) -> Vec<Process> {
    let place = place.to_string_lossy();
    let processes = all();
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in &processes {
        children.entry(process.parent).or_default().push(process);
    }
    let me = std::process::id() as i32;
    let mut queue: Vec<&Process> = processes.iter().filter(|p| p.pid == root).collect();
    queue.extend(
        processes
            .iter()
            .filter(|p| p.pid != me && p.command.contains(&*place)),
    );
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(process) = queue.get(next).copied() {
        next += 1;
        if seen.insert(process.pid) {
            found.push(process.clone());
            queue.extend(children.get(&process.pid).into_iter().flatten());
        }
    }
    found
}

/// Ends [`tree`] for good: parents first, so that nothing is started again.
pub fn kill_tree(root: i32, place: &Path) {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<_> = tree(root, place)
            .into_iter()
            .filter(|p| is_alive(p.pid))
            .collect();
        if left.is_empty() || Instant::now() > end {
            return;
        }
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a process when we die without having cleaned up (a signal, an abort): a shell that waits for the
/// end of a pipe only we hold.
pub struct Watchdog(Child);

impl Watchdog {
    pub fn over(pid: u32) -> Self {
        let child = Command::new("sh")
            .args(["-c", "read -r _; kill -TERM \"$1\"", "watchdog", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Self(child)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
