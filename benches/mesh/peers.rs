//! Who is compared: our own machine as a user runs it, nginx and haproxy, each a few processes on free ports.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::common::agent::Agent;
use crate::common::machine::Machine;
use crate::common::ports::Port;
use crate::common::process::{self, Watchdog};
use crate::common::{self, CLIENT_APP, SERVER_APP};

/// Somebody who answers wrk.
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) addr: SocketAddr,
    /// Whose time is counted. The first is what is measured, the others are what it leads through.
    pub(crate) parts: Vec<Part>,
}

#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) pids: Vec<i32>,
}

impl Part {
    pub(crate) fn new(name: &'static str, pids: Vec<i32>) -> Self {
        Self { name, pids }
    }
}

/// Of `dstack-vpc run`.
pub(crate) fn daemon(machine: &Machine) -> Vec<i32> {
    pids(machine, |command| command.ends_with(" run"))
}

fn pids(machine: &Machine, wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let processes = machine.processes().into_iter();
    processes.filter(|p| wanted(&p.command)).map(|p| p.pid).collect()
}

/// Certificates of the stand-in KMS as files, for programs that want them so.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn of(agent: &Agent) -> Result<Self> {
        let dir = directory()?;
        for (name, app) in [("server", SERVER_APP), ("client", CLIENT_APP)] {
            let issued = agent.issue(app);
            let (chain, root) = issued.chain_pems.split_at(2);
            let chain = chain.concat();
            let write =
                |ending: &str, text: &str| fs::write(dir.path().join(format!("{name}.{ending}")), text);
            write("pem", &chain)?;
            write("key", &issued.key_pem)?;
            write("both", &(chain + &issued.key_pem))?;
            fs::write(dir.path().join("root.pem"), root.concat())?;
        }
        Ok(Self(dir))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }
}

/// A program with a configuration of its own. Dropping it ends all its processes.
pub(crate) struct Program {
    child: Child,
    dir: TempDir,
    _watchdog: Watchdog,
}

impl Program {
    /// `template` with each `@NAME@` replaced.
    pub(crate) async fn nginx(template: &str, values: &[(&str, String)]) -> Result<Self> {
        Self::start(template, values, |dir, file| {
            let mut command = Command::new("nginx");
            command
                .arg("-p")
                .arg(dir)
                .arg("-c")
                .arg(file)
                .args(["-e", "stderr"]);
            command
        })
        .await
    }

    pub(crate) async fn haproxy(template: &str, values: &[(&str, String)]) -> Result<Self> {
        Self::start(template, values, |_, file| {
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(file);
            command
        })
        .await
    }

    async fn start(
        template: &str,
        values: &[(&str, String)],
        command: impl FnOnce(&Path, &Path) -> Command,
    ) -> Result<Self> {
        let dir = directory()?;
        let mut text = template.to_owned();
        for (name, value) in values {
            text = text.replace(&format!("@{name}@"), value);
        }
        let file = dir.path().join("conf");
        fs::write(&file, &text)?;
        let mut command = command(dir.path(), &file);
        let log = File::create(dir.path().join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{command:?} cannot be started; scripts/setup --bench installs it"))?;
        let mut program = Self {
            _watchdog: Watchdog::over(child.id()),
            child,
            dir,
        };
        for (_, value) in values {
            if let Ok(addr) = value.parse() {
                program.until_open(addr).await?;
            }
        }
        Ok(program)
    }

    async fn until_open(&mut self, addr: SocketAddr) -> Result<()> {
        let open = common::poll(Duration::from_secs(10), async || {
            tokio::net::TcpStream::connect(addr).await.ok()
        });
        if open.await.is_none() || self.child.try_wait()?.is_some() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            bail!("nothing answers at {addr}:\n{log}");
        }
        Ok(())
    }

    /// Of all its processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let tree = process::tree(self.child.id() as i32, self.dir.path());
        tree.into_iter().map(|p| p.pid).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        process::kill_tree(self.child.id() as i32, self.dir.path());
        let _ = self.child.wait();
    }
}

/// Where nginx' workers, who are another user, can read.
pub(crate) fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("vpc-bench-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir()?)
}

/// The mTLS server that answers by itself.
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) tls: Port,
}

impl Server {
    pub(crate) async fn start(certificates: &Certificates) -> Result<Self> {
        let tls = Port::reserve();
        let values = [
            ("DIR", certificates.dir().display().to_string()),
            ("SERVER", tls.to_string()),
            ("BODY", "x".repeat(512)),
        ];
        let program = Program::nginx(include_str!("conf/server.nginx"), &values).await?;
        Ok(Self { program, tls })
    }
}

/// nginx or haproxy as the client's side of the hop.
pub(crate) struct Hop {
    pub(crate) program: Program,
    pub(crate) port: Port,
}

impl Hop {
    pub(crate) async fn nginx(certificates: &Certificates, server: SocketAddr) -> Result<Self> {
        let port = Port::reserve();
        let values = Self::values(certificates, &port, server);
        let program = Program::nginx(include_str!("conf/hop.nginx"), &values).await?;
        Ok(Self { program, port })
    }

    pub(crate) async fn haproxy(certificates: &Certificates, server: SocketAddr) -> Result<Self> {
        let port = Port::reserve();
        let values = Self::values(certificates, &port, server);
        let program = Program::haproxy(include_str!("conf/hop.haproxy"), &values).await?;
        Ok(Self { program, port })
    }

    fn values(certificates: &Certificates, port: &Port, server: SocketAddr) -> [(&'static str, String); 3] {
        [
            ("DIR", certificates.dir().display().to_string()),
            ("SERVER", server.to_string()),
            ("HOP", port.to_string()),
        ]
    }
}

/// What ships: built beside the harness, by the `dist` profile. Or what the environment names.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BENCH_BINARY") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let target = me.ancestors().nth(3).context("the target folder")?;
    let binary = target.join("dist/dstack-vpc");
    match binary.exists() {
        true => Ok(binary),
        false => bail!(
            "{} is missing: cargo build --profile dist --bin dstack-vpc",
            binary.display()
        ),
    }
}
