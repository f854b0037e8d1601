//! Who is compared: parts of our own machines, and nginx and haproxy with configurations of their own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dstack_vpc::agent::dev::LeafRequest;
use tempfile::TempDir;

use crate::common::agent::Agent;
use crate::common::machine::Machine;
use crate::common::ports::Port;
use crate::common::process::{self, Watchdog};
use crate::common::{self, CLIENT_APP, SERVER_APP};

/// Somebody who answers wrk.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) addr: SocketAddr,
    /// Whose time is counted. The first is what is measured, the others are what it leads through.
    pub(crate) parts: Vec<Part>,
}

/// Processes whose time is counted as one.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// None: this peer does without it.
    pub(crate) pids: Vec<i32>,
}

impl Part {
    pub(crate) fn new(name: &'static str, pids: Vec<i32>) -> Self {
        Self { name, pids }
    }

    /// Of `dstack-vpc run`.
    pub(crate) fn daemon(name: &'static str, machine: &Machine) -> Self {
        Self::of_machine(name, machine, |command| command.ends_with(" run"))
    }

    /// Of the nginx that we rendered.
    pub(crate) fn front(name: &'static str, machine: &Machine) -> Self {
        Self::of_machine(name, machine, |command| command.starts_with("nginx: "))
    }

    /// Of both, where there are both.
    pub(crate) fn whole(name: &'static str, machine: &Machine) -> Self {
        Self::of_machine(name, machine, |command| {
            command.ends_with(" run") || command.starts_with("nginx: ")
        })
    }

    /// With the processes of another one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.pids.extend(other.pids);
        self
    }

    fn of_machine(name: &'static str, machine: &Machine, wanted: impl Fn(&str) -> bool) -> Self {
        let processes = machine.processes().into_iter();
        let pids = processes.filter(|p| wanted(&p.command)).map(|p| p.pid);
        Self::new(name, pids.collect())
    }
}

/// Certificates of the stand-in KMS as files, for programs that want them so; and files to be downloaded.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new(agent: &Agent) -> Result<Self> {
        let dir = directory()?;
        let write = |name: String, text: &str| fs::write(dir.path().join(name), text);
        for (name, app) in [("server", SERVER_APP), ("client", CLIENT_APP)] {
            // Named as our own machines have themselves named, and so that ghostunnel reads it as well.
            let request = LeafRequest {
                subject: app.to_owned(),
                alt_names: vec![app.to_owned()],
                ..LeafRequest::both()
            };
            let issued = agent.issue_as(app, &request);
            let (chain, root) = issued.chain_pems.split_at(2);
            let chain = chain.concat();
            write(format!("{name}.pem"), &chain)?;
            write(format!("{name}.key"), &issued.key_pem)?;
            write(format!("{name}.both"), &(chain + &issued.key_pem))?;
            write("root.pem".to_owned(), &root.concat())?;
        }
        fs::create_dir(dir.path().join("files"))?;
        for size in crate::scenes::SIZES {
            write(format!("files/{size}"), &"x".repeat(size))?;
        }
        Ok(Self(dir))
    }

    fn dir(&self) -> (&'static str, String) {
        ("DIR", self.0.path().display().to_string())
    }
}

/// A program with a configuration of its own. Dropping it ends all its processes.
pub(crate) struct Program {
    child: Child,
    dir: TempDir,
    _watchdog: Watchdog,
}

impl Program {
    /// `template` with each `@NAME@` replaced. Waits for every address among the values.
    pub(crate) async fn nginx(template: &str, values: &[(&str, String)]) -> Result<Self> {
        let program = Self::start(template, values, |dir, file| {
            let mut command = Command::new("nginx");
            command.arg("-p").arg(dir).arg("-c").arg(file);
            command.args(["-e", "stderr", "-g", "daemon off; pid nginx.pid;"]);
            command
        })
        .await?;
        // Its ports are open before its workers are there, one a processor.
        let workers = thread::available_parallelism()?.get();
        let all = common::poll(Duration::from_secs(10), async || {
            (program.part("").pids.len() > workers).then_some(())
        });
        all.await.context("nginx has no workers")?;
        Ok(program)
    }

    /// The same for haproxy.
    pub(crate) async fn haproxy(template: &str, values: &[(&str, String)]) -> Result<Self> {
        Self::start(template, values, |_, file| {
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(file);
            command
        })
        .await
    }

    /// The same for ghostunnel, which has no configuration but its arguments: one a line.
    pub(crate) async fn ghostunnel(template: &str, values: &[(&str, String)]) -> Result<Self> {
        Self::start(template, values, |_, file| {
            let mut command = Command::new("ghostunnel");
            command.args(fs::read_to_string(file).unwrap_or_default().lines());
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

    /// All its processes as one part.
    pub(crate) fn part(&self, name: &'static str) -> Part {
        let tree = process::tree(self.child.id() as i32, self.dir.path());
        Part::new(name, tree.into_iter().map(|p| p.pid).collect())
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

/// nginx that answers by itself, over mutual TLS and without.
pub(crate) struct Answers {
    pub(crate) program: Program,
    pub(crate) tls: Port,
    pub(crate) plain: Port,
    /// Mutual TLS, one request a connection: its session can be resumed, or not.
    pub(crate) resumed: Port,
    pub(crate) fresh: Port,
    status: Port,
}

impl Answers {
    pub(crate) async fn start(files: &Files) -> Result<Self> {
        let ports: [Port; 5] = std::array::from_fn(|_| Port::reserve());
        let names = ["TLS", "PLAIN", "RESUMED", "FRESH", "STATUS"];
        let mut values = vec![files.dir(), ("BODY", "x".repeat(512))];
        values.extend(names.into_iter().zip(ports.iter().map(Port::to_string)));
        let program = Program::nginx(include_str!("conf/answers.nginx"), &values).await?;
        let [tls, plain, resumed, fresh, status] = ports;
        Ok(Self {
            program,
            tls,
            plain,
            resumed,
            fresh,
            status,
        })
    }

    /// Connections accepted since the start, the one of this question among them.
    pub(crate) fn accepted(&self) -> Result<u64> {
        let mut stream = TcpStream::connect(self.status.addr())?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let numbers = answer.split("requests").nth(1).context("stub_status")?;
        let accepted = numbers.split_whitespace().next().context("stub_status")?;
        Ok(accepted.parse()?)
    }
}

/// nginx or haproxy as the client's side of the hop.
pub(crate) struct Hop {
    pub(crate) program: Program,
    pub(crate) port: Port,
}

impl Hop {
    pub(crate) async fn nginx(files: &Files, server: SocketAddr) -> Result<Self> {
        let (port, values) = Self::values(files, server);
        let program = Program::nginx(include_str!("conf/hop.nginx"), &values).await?;
        Ok(Self { program, port })
    }

    pub(crate) async fn haproxy(files: &Files, server: SocketAddr) -> Result<Self> {
        let (port, values) = Self::values(files, server);
        let program = Program::haproxy(include_str!("conf/hop.haproxy"), &values).await?;
        Ok(Self { program, port })
    }

    /// nginx as the serving side: mutual TLS in, and on to `backend` without asking anybody.
    pub(crate) async fn front(files: &Files, backend: SocketAddr) -> Result<Self> {
        let port = Port::reserve();
        let values = [
            files.dir(),
            ("BACKEND", backend.to_string()),
            ("FRONT", port.to_string()),
        ];
        let program = Program::nginx(include_str!("conf/front.nginx"), &values).await?;
        Ok(Self { program, port })
    }

    fn values(files: &Files, server: SocketAddr) -> (Port, [(&'static str, String); 4]) {
        let port = Port::reserve();
        let values = [
            files.dir(),
            ("SERVER", server.to_string()),
            ("NAME", SERVER_APP.to_owned()),
            ("HOP", port.to_string()),
        ];
        (port, values)
    }
}

/// Two programs of one kind with mutual TLS between them, for TCP as it is.
pub(crate) struct Tunnel {
    pub(crate) near: Hop,
    far: Hop,
}

impl Tunnel {
    /// Leads to `backend`.
    pub(crate) async fn haproxy(files: &Files, backend: SocketAddr) -> Result<Self> {
        let (near, far, values) = Self::values(files, backend);
        let serving = Program::haproxy(include_str!("conf/far.haproxy"), &values[..3]).await?;
        let calling = Program::haproxy(include_str!("conf/near.haproxy"), &values[1..]).await?;
        Ok(Self::of((calling, near), (serving, far)))
    }

    /// The same with ghostunnel.
    pub(crate) async fn ghostunnel(files: &Files, backend: SocketAddr) -> Result<Self> {
        let (near, far, values) = Self::values(files, backend);
        let serving = Program::ghostunnel(include_str!("conf/far.ghostunnel"), &values[..3]).await?;
        let calling = Program::ghostunnel(include_str!("conf/near.ghostunnel"), &values[1..]).await?;
        Ok(Self::of((calling, near), (serving, far)))
    }

    fn of(near: (Program, Port), far: (Program, Port)) -> Self {
        let hop = |(program, port)| Hop { program, port };
        Self {
            near: hop(near),
            far: hop(far),
        }
    }

    /// The serving side needs the first three, the calling one the last four.
    fn values(files: &Files, backend: SocketAddr) -> (Port, Port, [(&'static str, String); 5]) {
        let (near, far) = (Port::reserve(), Port::reserve());
        let values = [
            ("BACKEND", backend.to_string()),
            ("FAR", far.to_string()),
            files.dir(),
            ("NAME", SERVER_APP.to_owned()),
            ("NEAR", near.to_string()),
        ];
        (near, far, values)
    }

    /// Of the calling side and of the serving one.
    pub(crate) fn pids(&self) -> [Vec<i32>; 2] {
        [&self.near, &self.far].map(|hop| hop.program.part("").pids)
    }
}
