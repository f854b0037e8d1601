//! Nothing of what is in memory gets to a disk when a program crashes.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::machine::has_nginx;
use crate::common::pair::Pair;
use crate::common::{poll, run};

#[test]
fn a_crash_writes_no_core() {
    run(async {
        // A host on which cores are written, as far as we may say so.
        let (_, most) = nix::sys::resource::getrlimit(Resource::RLIMIT_CORE).unwrap();
        let wanted = match nix::unistd::geteuid().is_root() {
            true => RLIM_INFINITY,
            false => most,
        };
        setrlimit(Resource::RLIMIT_CORE, wanted, wanted).unwrap();
        let pair = Pair::start().await;
        let machine = &pair.server;
        let processes = machine.processes();
        for process in &processes {
            let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap_or_default();
            let core = limits.lines().find(|line| line.starts_with("Max core file size"));
            let words: Vec<_> = core
                .unwrap_or_default()
                .split_whitespace()
                .skip(4)
                .take(2)
                .collect();
            // To a handler that the kernel calls, 0 is no limit; 1 is.
            assert!(words == ["1", "1"] || words.is_empty(), "{process:?}: {core:?}");
        }
        for (name, words) in [("dstack-vpc", " run"), ("nginx", "nginx: master")] {
            if name == "nginx" && !has_nginx() {
                continue;
            }
            let process = processes
                .iter()
                .find(|it| it.command.contains(words))
                .expect(name);
            kill(Pid::from_raw(process.pid), Signal::SIGABRT).unwrap();
            let told = poll(Duration::from_secs(60), async || {
                let log = std::fs::read_to_string(machine.dir.path().join("up.log")).ok()?;
                let mut lines = log.lines().filter(|line| line.contains("terminated by SIGABRT"));
                lines.find(|line| line.contains(name)).map(str::to_owned)
            });
            let told = told.await.unwrap_or_else(|| panic!("{name}: {}", machine.logs()));
            assert!(!told.contains("core dumped"), "{told}");
        }
        machine.until_ready().await;

        // Where the host writes cores, the same signal makes one of another program: the above has shown something.
        let dir = tempfile::tempdir().unwrap();
        let mut other = Command::new("sh");
        let other = other.args(["-c", "kill -ABRT $$"]).current_dir(dir.path());
        let died = other.status().unwrap();
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        assert!(
            died.core_dumped()
                || wanted == 0
                || pattern.trim_start().starts_with('|')
                || pattern.trim().is_empty(),
            "{died:?}, {pattern}"
        );
    });
}
