//! nginx by itself: the nginx.conf that a machine of ours rendered, on other ports, managed by nobody.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::machine::replace;
use crate::common::ports::Port;
use crate::common::process::Watchdog;
use crate::site::{Site, Stage, Took, answers, host_of, name, open_folder, until};

/// Dropping it ends nginx.
pub(crate) struct Alone {
    pub(crate) dir: TempDir,
    pub(crate) https: Port,
    _http: Port,
    text: String,
    child: Child,
    _watchdog: Watchdog,
}

impl Alone {
    pub(crate) async fn start(stage: &Stage, site: &Site) -> Result<Self> {
        let dir = open_folder(stage.apart.path());
        let (http, https) = (Port::reserve(), Port::reserve());
        let rendered = site.machine.state.current().join("nginx/nginx.conf");
        let text = fs::read_to_string(rendered)?
            .replace(&site.machine.ports.http.to_string(), &http.to_string())
            .replace(&site.machine.ports.https.to_string(), &https.to_string());
        fs::write(dir.path().join("nginx.conf"), &text)?;
        let mut command = Command::new("nginx");
        command.args(arguments(&dir, "daemon off; "));
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let alone = Self {
            _watchdog: Watchdog::over(child.id()),
            dir,
            https,
            _http: http,
            text,
            child,
        };
        until(async || answers(stage, alone.https.addr()).await.as_deref() == Some("here")).await?;
        Ok(alone)
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.path().join("nginx.conf")
    }

    /// What the file says with no backend moved.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// `nginx …`, to reload it.
    pub(crate) fn reload(&self) -> Vec<String> {
        let mut words = vec!["nginx".to_owned()];
        words.extend(arguments(&self.dir, ""));
        words.extend(["-s", "reload"].map(str::to_owned));
        words
    }

    /// `nginx -t` of its file.
    pub(crate) fn check(&self) -> Result<()> {
        let test = Command::new("nginx")
            .args(arguments(&self.dir, ""))
            .args(["-t", "-q"])
            .output()?;
        ensure!(
            test.status.success(),
            "nginx -t: {}",
            String::from_utf8_lossy(&test.stderr)
        );
        Ok(())
    }

    /// Moves the first backend by hand.
    pub(crate) async fn edit(&self, stage: &Stage, moved: bool) -> Result<Took> {
        let text = match moved {
            true => moved_text(&self.text, stage)?,
            false => self.text.clone(),
        };
        let old = self.workers();
        let wanted = if moved { "there" } else { "here" };
        let begin = Instant::now();
        replace(&self.conf(), text.as_bytes());
        let [program, arguments @ ..] = &self.reload()[..] else {
            unreachable!("nginx and its arguments")
        };
        let reload = tokio::process::Command::new(program)
            .args(arguments)
            .output()
            .await?;
        ensure!(
            reload.status.success(),
            "nginx -s reload: {}",
            String::from_utf8_lossy(&reload.stderr)
        );
        until(async || answers(stage, self.https.addr()).await.as_deref() == Some(wanted)).await?;
        let seen = begin.elapsed();
        until(async || !self.workers().iter().any(|pid| old.contains(pid))).await?;
        Ok(Took {
            seen,
            verified: begin.elapsed(),
        })
    }

    /// Those that accept connections.
    fn workers(&self) -> Vec<i32> {
        let master = self.child.id();
        let children =
            fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let accepts = |pid: &i32| {
            let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            title.contains("worker process") && !title.contains("shutting down")
        };
        pids.filter(accepts).collect()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn arguments(dir: &TempDir, more: &str) -> Vec<String> {
    let place = dir.path().display();
    let words = [
        "-p".into(),
        place.to_string(),
        "-c".into(),
        format!("{place}/nginx.conf"),
    ];
    let rest = [
        "-e".into(),
        "stderr".into(),
        "-g".into(),
        format!("{more}pid {place}/nginx.pid;"),
    ];
    words.into_iter().chain(rest).collect()
}

/// The file with the first backend at the other server.
pub(crate) fn moved_text(text: &str, stage: &Stage) -> Result<String> {
    let (here, there) = (stage.here.addr().to_string(), stage.there.addr().to_string());
    let start = text
        .find(&format!("upstream \"backend_{}\" {{", name(0)))
        .context("the first backend")?;
    let end = text[start..]
        .find(&format!("upstream \"backend_{}\" {{", name(1)))
        .map_or(text.len(), |end| start + end);
    Ok(format!(
        "{}{}{}",
        &text[..start],
        text[start..end].replace(&here, &there),
        &text[end..]
    ))
}

/// The text of one backend in each of the two places where all of them stand, and what is around: before, the
/// upstreams of one, between, the server of one, after.
pub(crate) fn parts(text: &str) -> Result<[&str; 5]> {
    let at = |wanted: &str, from: usize| {
        let found = text[from..].find(wanted).map(|place| from + place);
        found.with_context(|| format!("nginx.conf has {wanted:?}"))
    };
    let upstreams = at(&format!("\n\n    upstream \"backend_{}\" {{", name(0)), 0)?;
    let second = at(&format!("\n\n    upstream \"backend_{}\" {{", name(1)), upstreams)?;
    let between = at("\n\n    # mesh.http_listen", second)?;
    let server = |number: usize| {
        let named = at(&format!("server_name \"{}\";", host_of(number)), between)?;
        text[..named]
            .rfind("\n\n    server {")
            .context("its server block")
    };
    let (first, next) = (server(0)?, server(1)?);
    let after = text.trim_end().rfind("\n}").context("the end")?;
    Ok([
        &text[..upstreams],
        &text[upstreams..second],
        &text[between..first],
        &text[first..next],
        &text[after..],
    ])
}
