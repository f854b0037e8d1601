//! Another nginx in the place of the one that runs: where old addresses are in the way of new ones no reload helps.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::probe;
use super::real::{Real, START};
use crate::desired::Program;
use crate::facts::process;
use crate::supervisor::SupervisorError;

/// A busy connection has an answer within this time.
const FAREWELL: Duration = Duration::from_millis(200);
/// Workers that are told to end close their listeners well within this.
const LET_GO: Duration = Duration::from_secs(1);
/// How often to look whether all have left.
const STILL_THERE: Duration = Duration::from_millis(2);

impl Real {
    /// Only the master ends at once: its workers close what they listen on and finish what they have begun, as after a
    /// reload, which takes hours if need be. supervisord has not stopped it, so it starts the next one whatever
    /// becomes of us.
    ///
    /// It may do so before we ask for it, and an nginx that finds an address taken waits for half a second: so the
    /// master, which starts no other workers while it is held, goes only when they have let go. Should we be killed
    /// meanwhile, [`Real::release_nginx`] is for the next daemon.
    pub(super) async fn restart_nginx(&self) -> Result<(), SupervisorError> {
        let name = Program::Nginx.name();
        // Of one that ends within a second of its start supervisord thinks that it failed, and lets another second pass.
        let _ = self.supervisor.start(name, Some(START)).await;
        let pid = self.supervisor.process(name).await?.pid;
        let master = pid.map(Pid::from_raw);
        // Whom these signals are for may be gone by now, which is as good.
        if let Some(master) = master {
            self.bid_farewell().await;
            tokio::time::sleep(FAREWELL).await;
            let end = Instant::now() + LET_GO;
            let _ = kill(master, Signal::SIGSTOP);
            let workers = probe::workers(master.as_raw());
            let _ = killpg(master, Signal::SIGQUIT);
            while workers.iter().any(|pid| probe::accepts(*pid)) && Instant::now() < end {
                tokio::time::sleep(STILL_THERE).await;
            }
        }
        self.make_room().await;
        if let Some(master) = master {
            let end = Instant::now() + LET_GO;
            let _ = kill(master, Signal::SIGKILL);
            while !has_ended(master) && Instant::now() < end {
                tokio::time::sleep(STILL_THERE).await;
            }
            // A worker that it was just starting.
            let _ = killpg(master, Signal::SIGQUIT);
        }
        self.supervisor.start_again(name, pid, START).await
    }

    /// Closes what the daemon listens on no longer.
    async fn make_room(&self) {
        if let Some(listeners) = &mut *self.listeners.lock().await {
            listeners.make_room().await;
        }
    }

    /// Tells nginx's clients to leave the connections that its reload is about to close. They have time for that: it starts
    /// its new workers, and sleeps for 100 ms before it sends the old ones away.
    pub(super) async fn bid_farewell(&self) {
        if let Some(listeners) = &*self.listeners.lock().await {
            listeners.bid_farewell();
        }
    }

    /// Ends an nginx that outlived its supervisord: it would keep the ports from the next one.
    pub async fn end_leftover(&self) {
        for _ in 0..50 {
            let Some(master) = self.nginx_master().filter(|pid| is_nginx(*pid)) else {
                return;
            };
            tracing::warn!(pid = master.as_raw(), "an nginx that nobody supervises is ended");
            // Gone meanwhile is as good.
            let _ = kill(master, Signal::SIGTERM);
            self.release_nginx();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Lets a master go on that was held to be exchanged by a daemon that was killed: it has been told to end.
    pub(super) fn release_nginx(&self) {
        if let Some(master) = self.nginx_master().filter(|pid| is_nginx(*pid)) {
            let _ = kill(master, Signal::SIGCONT);
        }
    }

    pub(super) fn nginx_master(&self) -> Option<Pid> {
        let text = fs::read_to_string(&self.nginx_pid_file).ok()?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        Some(Pid::from_raw(pid))
    }
}

/// Whether a process is no more. Its parent may not have noticed yet: supervisord asks once a second.
pub fn has_ended(pid: Pid) -> bool {
    let zombie = u32::try_from(pid.as_raw())
        .ok()
        .and_then(process::look)
        .is_some_and(|it| it.zombie);
    zombie || kill(pid, None) == Err(Errno::ESRCH)
}

/// Whether a pid from a file that may be old is still that of an nginx.
fn is_nginx(master: Pid) -> bool {
    let title = fs::read(format!("/proc/{master}/cmdline")).unwrap_or_default();
    title.starts_with(b"nginx: master")
}
