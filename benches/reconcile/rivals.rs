//! consul-template and confd, rendering the same nginx.conf from a list of the same backends, and reloading their own
//! nginx.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::alone::{Alone, moved_text, parts};
use crate::common::machine::replace;
use crate::common::process::Watchdog;
use crate::site::{Site, Stage, Took, answers, host_of, name, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ConsulTemplate,
    Confd,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::ConsulTemplate, Self::Confd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConsulTemplate => "consul-template",
            Self::Confd => "confd",
        }
    }
}

/// One of them, started; its nginx serves what it rendered. Dropping it ends both.
pub(crate) struct Rival {
    kind: Kind,
    child: Child,
    _watchdog: Watchdog,
    alone: Alone,
    backends: usize,
}

impl Rival {
    pub(crate) async fn start(stage: &Stage, site: &Site, kind: Kind, backends: usize) -> Result<Self> {
        let alone = Alone::start(stage, site).await?;
        let dir = alone.dir.path();
        let conf = alone.conf();
        fs::write(dir.join("list"), list(stage, kind, backends, false))?;
        let [before, upstreams, between, server, after] = parts(alone.text())?;
        ensure!(
            !alone.text().contains("{{"),
            "nginx.conf has what Go's templates read"
        );
        let each = |text: &str| {
            let (host, addr, name) = match kind {
                Kind::ConsulTemplate => ("{{$b.host}}", "{{$b.upstream}}", "{{$name}}"),
                Kind::Confd => ("{{index $v 0}}", "{{index $v 1}}", "{{base .Key}}"),
            };
            let text = text
                .replace(&host_of(0), host)
                .replace(&stage.here.addr().to_string(), addr)
                .replace(&crate::site::name(0), name);
            match kind {
                Kind::ConsulTemplate => format!("{{{{range $name, $b := $list}}}}{text}{{{{end}}}}"),
                Kind::Confd => format!(
                    "{{{{range gets \"/backends/*\"}}}}{{{{$v := split .Value \" \"}}}}{text}{{{{end}}}}"
                ),
            }
        };
        let template = [before, &each(upstreams), between, &each(server), after].concat();
        let reload = alone.reload();
        let mut command = Command::new(kind.name());
        match kind {
            Kind::ConsulTemplate => {
                let list = dir.join("list");
                let source = dir.join("nginx.conf.tpl");
                let template = format!("{{{{$list := file {list:?} | parseJSON}}}}{template}");
                fs::write(&source, template)?;
                let settings = format!(
                    "log_level = \"err\"\ntemplate {{\n  source = {source:?}\n  destination = {conf:?}\n  command = {}\n}}\n",
                    serde_json::to_string(&reload)?
                );
                fs::write(dir.join("settings.hcl"), settings)?;
                command.arg("-config").arg(dir.join("settings.hcl"));
            }
            Kind::Confd => {
                for folder in ["conf.d", "templates"] {
                    fs::create_dir(dir.join(folder))?;
                }
                fs::write(dir.join("templates/nginx.conf.tmpl"), template)?;
                let quoted: Vec<_> = reload.iter().map(|word| format!("'{word}'")).collect();
                let check = format!(
                    "nginx -p {0} -e stderr -g 'pid {0}/check.pid;' -t -q -c {{{{.src}}}}",
                    dir.display()
                );
                let settings = format!(
                    "[template]\nsrc = \"nginx.conf.tmpl\"\ndest = {conf:?}\nkeys = [\"/backends\"]\ncheck_cmd = {check:?}\nreload_cmd = {:?}\n",
                    quoted.join(" ")
                );
                fs::write(dir.join("conf.d/nginx.toml"), settings)?;
                command.args(["-interval", "1", "-backend", "file", "-log-level", "error"]);
                command
                    .arg("-file")
                    .arg(dir.join("list"))
                    .arg("-confdir")
                    .arg(dir);
            }
        }
        let log = File::create(dir.join("log"))?;
        // A file of its own making first, so that what serves is known to be that.
        replace(
            &conf,
            format!("{}\n# not rendered yet\n", alone.text()).as_bytes(),
        );
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let rival = Self {
            kind,
            _watchdog: Watchdog::over(child.id()),
            child,
            alone,
            backends,
        };
        until(async || fs::read_to_string(rival.alone.conf()).is_ok_and(|now| now == rival.alone.text()))
            .await
            .map_err(|error| error.context(rival.log()))?;
        until(async || answers(stage, rival.alone.https.addr()).await.as_deref() == Some("here")).await?;
        Ok(rival)
    }

    /// Moves the first backend in its list. Nobody verifies here: it is live when the first call says so.
    pub(crate) async fn edit(&self, stage: &Stage, moved: bool) -> Result<Took> {
        let wanted = if moved { "there" } else { "here" };
        let text = list(stage, self.kind, self.backends, moved);
        let begin = Instant::now();
        replace(&self.source(), text.as_bytes());
        until(async || answers(stage, self.alone.https.addr()).await.as_deref() == Some(wanted))
            .await
            .map_err(|error| error.context(self.log()))?;
        let seen = begin.elapsed();
        let rendered = fs::read_to_string(self.alone.conf())?;
        let ours = match moved {
            true => moved_text(self.alone.text(), stage)?,
            false => self.alone.text().to_owned(),
        };
        ensure!(rendered == ours, "{} rendered another file", self.kind.name());
        Ok(Took { seen, verified: seen })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn source(&self) -> PathBuf {
        self.alone.dir.path().join("list")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.alone.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// JSON for the one, YAML for the other.
fn list(stage: &Stage, kind: Kind, backends: usize, moved: bool) -> String {
    let upstream = |number: usize| match number == 0 && moved {
        true => stage.there.addr(),
        false => stage.here.addr(),
    };
    let mut text = String::new();
    match kind {
        Kind::ConsulTemplate => {
            let each = (0..backends).map(|number| {
                let about = serde_json::json!({ "host": host_of(number), "upstream": upstream(number) });
                (name(number), about)
            });
            text += &serde_json::Value::Object(each.collect()).to_string();
        }
        Kind::Confd => {
            text += "backends:\n";
            for number in 0..backends {
                let _ = writeln!(
                    text,
                    "  {}: \"{} {}\"",
                    name(number),
                    host_of(number),
                    upstream(number)
                );
            }
        }
    }
    text
}
