//! A real supervisord for the length of a test.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dstack_vpc::supervisor::{Limits, Supervisor};

use super::rendered::program;

pub const LIMITS: Limits = Limits {
    start: Duration::from_secs(10),
    stop: Duration::from_secs(10),
};

/// A supervisord of our own in the foreground; it and its children end with this value.
pub struct Running {
    pub child: Child,
    pub client: Supervisor,
}

impl Running {
    pub async fn start(conf: &Path, socket: &Path, stdout: Stdio, stderr: Stdio) -> Self {
        let mut child = Command::new(program("supervisord"))
            .arg("-c")
            .arg(conf)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let client = Supervisor::new(socket);
        for _ in 0..200 {
            if client.alive().await.is_ok() {
                return Self { child, client };
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("supervisord ended with {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        child.kill().unwrap();
        panic!("supervisord does not answer");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
