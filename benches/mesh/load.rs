//! Requests made by wrk, and what they cost whom.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::common::SERVER_APP;
use crate::peers::{Answers, Peer};
use crate::shared::proc;

/// What is asked, again and again.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) path: String,
    /// Each takes its turn.
    pub(crate) headers: Vec<Vec<(&'static str, String)>>,
    /// Bytes of body, one way.
    pub(crate) size: usize,
    /// The body goes up, with POST.
    pub(crate) upload: bool,
}

/// One run of a [`Load`] against one peer.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// A second.
    pub(crate) requests: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Microseconds for each request, of each part of the peer, in the peer's order.
    pub(crate) cpu: Vec<f64>,
    /// What the kernel took of that.
    pub(crate) kernel: Vec<f64>,
    /// Bytes, of the peer's first part.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    /// Connections made to the server behind it.
    pub(crate) connects: f64,
    pub(crate) errors: u64,
    /// Their share of all requests.
    failed: f64,
}

/// What `conf/report.lua` prints.
#[derive(Deserialize)]
struct Said {
    requests: u64,
    micros: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    errors: u64,
}

impl Load {
    /// GET / of [`SERVER_APP`].
    pub(crate) fn get(connections: usize) -> Self {
        Self {
            connections,
            path: "/".to_owned(),
            headers: vec![vec![("x-dstack-target-app", SERVER_APP.to_owned())]],
            size: 0,
            upload: false,
        }
    }

    /// `scratch` takes the script for wrk.
    pub(crate) fn run(
        &self,
        peer: &Peer,
        long: Duration,
        counter: Option<&Answers>,
        scratch: &Path,
    ) -> Result<Sample> {
        let measured = &peer.parts[0].pids;
        let accepted = || counter.map(Answers::accepted).transpose();
        proc::forget_peak(measured);
        let accepted_before = accepted()?;
        let look =
            |at: fn(&[i32]) -> u64| -> Vec<_> { peer.parts.iter().map(|part| at(&part.pids)).collect() };
        let (cpu, kernel) = (look(proc::cpu), look(proc::kernel));
        let said = self.wrk(peer.addr, long, scratch)?;
        // The second question is itself one.
        let connects = accepted()?
            .zip(accepted_before)
            .map(|(now, before)| now - before - 1);
        let requests = said.requests as f64;
        let each = |now: Vec<u64>, before: Vec<u64>| {
            let spent = now.into_iter().zip(before);
            spent
                .map(|(now, before)| (now - before) as f64 / requests)
                .collect()
        };
        Ok(Sample {
            requests: requests / (said.micros as f64 / 1e6),
            p50: said.p50 as f64,
            p99: said.p99 as f64,
            p999: said.p999 as f64,
            cpu: each(look(proc::cpu), cpu),
            kernel: each(look(proc::kernel), kernel),
            resident: proc::resident(measured) as f64,
            peak: proc::peak(measured) as f64,
            connects: connects.map_or(f64::NAN, |connects| connects as f64),
            errors: said.errors,
            failed: said.errors as f64 / requests,
        })
    }

    fn wrk(&self, addr: SocketAddr, long: Duration, scratch: &Path) -> Result<Said> {
        let script = scratch.join("load.lua");
        fs::write(&script, self.script()?)?;
        let threads = self.connections.min(2);
        let output = Command::new("wrk")
            .args(["-t", &threads.to_string()])
            .args(["-c", &self.connections.to_string()])
            .args(["-d", &format!("{}s", long.as_secs())])
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

    /// Every request is made once and sent many times.
    fn script(&self) -> Result<String> {
        let mut script = String::from("local made, turn = {}, 0\nfunction init()\n");
        if self.upload {
            writeln!(script, "wrk.method = \"POST\"")?;
            writeln!(script, "wrk.body = string.rep(\"x\", {})", self.size)?;
        }
        for headers in &self.headers {
            for (name, value) in headers {
                writeln!(script, "wrk.headers[\"{name}\"] = \"{value}\"")?;
            }
            writeln!(script, "made[#made + 1] = wrk.format()")?;
        }
        script += "end\n";
        if self.headers.len() > 1 {
            script += "function request() turn = turn % #made + 1; return made[turn] end\n";
        }
        Ok(script + include_str!("conf/report.lua"))
    }
}

impl Sample {
    /// Refusals are quick: a run of many of them says nothing.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.requests > 0.0, "no request was answered");
        ensure!(
            self.failed < 0.01,
            "of 100 requests {:.0} failed",
            self.failed * 100.0
        );
        Ok(())
    }
}

/// Not a number when there are none.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = figures.collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => (all[n / 2 - 1] + all[n / 2]) / 2.0,
    }
}
