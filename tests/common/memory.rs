//! How much memory a machine takes while something goes on.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::machine::{Machine, front};
use super::process;

/// Looks at the resident memory of a machine's daemon and nginx again and again.
pub struct Memory {
    stop: CancellationToken,
    watcher: JoinHandle<Vec<(String, u64, u64)>>,
}

impl Memory {
    pub fn watch(machine: &Machine) -> Self {
        let processes: Vec<_> = machine
            .processes()
            .into_iter()
            .filter(|p| p.command.ends_with(" run") || p.command.starts_with("nginx: worker"))
            .collect();
        let front = usize::from(front() == "nginx");
        assert!(
            processes.len() > front,
            "a daemon, and nginx where it is the front: {:?}",
            machine.processes()
        );
        let mut seen: Vec<_> = processes
            .iter()
            .map(|p| (p.pid, process::resident(p.pid), 0))
            .collect();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let watcher = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                for (pid, before, most) in &mut seen {
                    *most = process::resident(*pid).max(*most).max(*before);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let commands = processes.into_iter().map(|p| p.command);
            commands
                .zip(seen)
                .map(|(command, (_, before, most))| (command, before, most))
                .collect()
        });
        Self { stop, watcher }
    }

    /// Command, KiB when it began, KiB at most.
    pub async fn stop(self) -> Vec<(String, u64, u64)> {
        self.stop.cancel();
        self.watcher.await.expect("the watcher")
    }
}
