//! Requests made by wrk, and what they cost whom.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::peers::Peer;
use crate::proc;

/// What is asked, again and again.
#[derive(Clone, Default)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Bytes to be sent with each request, with POST; none: GET.
    pub(crate) upload: usize,
}

/// One run of a [`Load`] against one peer, or the median of several.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// A second.
    pub(crate) requests: f64,
    /// Bytes a second that came back.
    pub(crate) received: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Microseconds for each request, of each part of the peer, in the peer's order.
    pub(crate) cpu: Vec<f64>,
    /// Bytes, of the peer's first part.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    pub(crate) errors: f64,
}

/// What `conf/report.lua` prints.
#[derive(Deserialize)]
struct Said {
    requests: u64,
    micros: u64,
    bytes: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    errors: u64,
}

impl Load {
    /// Runs it once. `scratch` takes the script for wrk.
    pub(crate) fn run(&self, peer: &Peer, scratch: &Path) -> Result<Sample> {
        let measured = &peer.parts[0].pids;
        proc::forget_peak(measured);
        let before: Vec<_> = peer.parts.iter().map(|part| proc::cpu(&part.pids)).collect();
        let said = self.wrk(peer.addr, scratch)?;
        let used = peer.parts.iter().zip(before);
        let used = used.map(|(part, before)| (proc::cpu(&part.pids) - before) as f64);
        ensure!(said.requests > 0, "{} answered nothing", peer.name);
        let (requests, seconds) = (said.requests as f64, said.micros as f64 / 1e6);
        Ok(Sample {
            requests: requests / seconds,
            received: said.bytes as f64 / seconds,
            p50: said.p50 as f64,
            p99: said.p99 as f64,
            p999: said.p999 as f64,
            cpu: used.map(|used| used / requests).collect(),
            resident: proc::resident(measured) as f64,
            peak: proc::peak(measured) as f64,
            errors: said.errors as f64,
        })
    }

    fn wrk(&self, addr: SocketAddr, scratch: &Path) -> Result<Said> {
        let script = scratch.join("load.lua");
        fs::write(&script, self.script()?)?;
        let threads = self.connections.min(2);
        let output = Command::new("wrk")
            .args(["-t", &threads.to_string()])
            .args(["-c", &self.connections.to_string()])
            .args(["-d", &format!("{}s", self.seconds)])
            .args(["--timeout", "10s", "-s"])
            .arg(&script)
            .arg(format!("http://{addr}{}", self.path))
            .stdin(Stdio::null())
            .output()
            .context("wrk cannot be started; scripts/setup --bench installs it")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find(|line| line.starts_with('{'));
        let said = said.with_context(|| format!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(serde_json::from_str(said)?)
    }

    fn script(&self) -> Result<String> {
        let mut script = String::new();
        for (name, value) in &self.headers {
            writeln!(script, "wrk.headers[\"{name}\"] = \"{value}\"")?;
        }
        if self.upload > 0 {
            writeln!(script, "wrk.method = \"POST\"")?;
            writeln!(script, "wrk.body = string.rep(\"x\", {})", self.upload)?;
        }
        Ok(script + include_str!("conf/report.lua"))
    }
}

impl Sample {
    /// Each figure's own median.
    pub(crate) fn median(samples: &[Sample]) -> Sample {
        let of = |figure: &dyn Fn(&Sample) -> f64| {
            let mut all: Vec<_> = samples.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            match all.len() {
                0 => f64::NAN,
                n if n % 2 == 1 => all[n / 2],
                n => (all[n / 2 - 1] + all[n / 2]) / 2.0,
            }
        };
        let parts = samples.first().map_or(0, |sample| sample.cpu.len());
        Sample {
            requests: of(&|s| s.requests),
            received: of(&|s| s.received),
            p50: of(&|s| s.p50),
            p99: of(&|s| s.p99),
            p999: of(&|s| s.p999),
            cpu: (0..parts).map(|part| of(&|s| s.cpu[part])).collect(),
            resident: of(&|s| s.resident),
            peak: of(&|s| s.peak),
            // A failure is not for a median to hide.
            errors: samples.iter().map(|s| s.errors).sum(),
        }
    }
}
