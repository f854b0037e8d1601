//! A node that nobody wrote a line of ours for: tailscaled, curl and a person.

use std::process::{Child, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::netns::Host;
use crate::common::process::Watchdog;

/// tailscaled on a host, driven by its command line.
pub(crate) struct Tailscaled<'a> {
    host: &'a Host,
    dir: TempDir,
    child: Child,
    _watchdog: Watchdog,
}

impl<'a> Tailscaled<'a> {
    /// With a TUN device. `ca` signed the certificate of the server's URL.
    pub(crate) fn start(host: &'a Host, ca: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("vpc-hand-").tempdir();
        let dir = dir.expect("a temporary directory");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
        let child = host
            .inside
            .command("tailscaled")
            .args(["--tun=tailscale0", "--no-logs-no-support"])
            .arg(format!("--statedir={}", dir.path().display()))
            .arg(format!("--socket={}/socket", dir.path().display()))
            .env("TS_LOGS_DIR", dir.path())
            .env("SSL_CERT_FILE", ca)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn()
            .expect("nsenter");
        Self {
            host,
            dir,
            _watchdog: Watchdog::over(child.id()),
            child,
        }
    }

    /// Runs `tailscale`.
    pub(crate) async fn cli(&self, words: &[&str]) -> Result<String, String> {
        let socket = format!("--socket={}/socket", self.dir.path().display());
        let words = [&["tailscale", &socket], words].concat();
        self.host.inside.tell(&words).await
    }

    pub(crate) async fn status(&self) -> Result<Value, String> {
        let status = self.cli(&["status", "--json"]).await?;
        serde_json::from_str(&status).map_err(|e| e.to_string())
    }
}

impl Drop for Tailscaled<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let skip = log.lines().count().saturating_sub(80);
            eprintln!("--- tailscaled of {} (the last lines)", self.host.name);
            log.lines().skip(skip).for_each(|line| eprintln!("{line}"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
