//! A machine that serves many backends, how it is edited, and how one sees that an edit is live.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dstack_vpc::agent::dev::Issued;
use dstack_vpc::reconcile::control::Daemon;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::common::agent::Agent;
use crate::common::backend::Backend;
use crate::common::http::{self, With, get};
use crate::common::machine::{Machine, Plan, replace};
use crate::common::ports::Port;
use crate::common::tls::Caller;
use crate::common::{OTHER_APP, SERVER_APP};
use crate::shared::host;

/// An edit that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(120);

/// How long the daemon may have been saying something else already.
const MISSED: Duration = Duration::from_millis(50);

/// One KMS, one caller, and the two servers between which a backend is moved.
pub(crate) struct Stage {
    agent: Agent,
    pub(crate) caller: Issued,
    pub(crate) here: Backend,
    pub(crate) there: Backend,
    nowhere: Port,
    /// For everybody else's files: where they are read and written all the time is no folder above ours.
    pub(crate) apart: TempDir,
}

impl Stage {
    pub(crate) async fn set() -> Self {
        let agent = Agent::start().await;
        Self {
            caller: agent.issue(OTHER_APP),
            agent,
            here: Backend::start("here").await,
            there: Backend::start("there").await,
            nowhere: Port::reserve(),
            apart: open_folder(&std::env::temp_dir()),
        }
    }

    /// A machine with so many backends that has come to serve, and how long that took.
    pub(crate) async fn site(&self, file: File) -> Result<(Site, Duration)> {
        let mut plan = Plan::new(&self.agent.socket(SERVER_APP), self.nowhere.addr(), &[]);
        let head = std::mem::take(&mut plan.toml);
        plan.toml = file.text(&head, self);
        let begin = Instant::now();
        let machine = host::start(plan, &host::shipped()?).await?;
        let took = begin.elapsed();
        Ok((Site { machine, head }, took))
    }
}

/// What `vpc.toml` says beside where things are.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) backends: usize,
    /// The first backend is at the other server.
    pub(crate) moved: bool,
    /// Apps that may call the first backend beside the caller; `None`: any.
    pub(crate) apps: Option<usize>,
    /// Whether the caller is on the list.
    pub(crate) caller_may: bool,
    pub(crate) debounce: &'static str,
    /// `mesh.front`.
    pub(crate) front: &'static str,
}

impl File {
    pub(crate) const fn new(backends: usize) -> Self {
        Self {
            backends,
            moved: false,
            apps: None,
            caller_may: true,
            debounce: "50ms",
            front: "nginx",
        }
    }

    pub(crate) fn text(&self, head: &str, stage: &Stage) -> String {
        // nginx alone takes seconds for 10,000 backends.
        let head = head.replace("probe_timeout = \"3s\"", "probe_timeout = \"60s\"");
        let front = format!("front = \"{}\"\n", self.front);
        let head = head.replace("front = \"nginx\"\n", &front);
        let reconcile = format!("[reconcile]\ndebounce = \"{}\"\n", self.debounce);
        let mut text = head.replace("[reconcile]\n", &reconcile);
        for number in 0..self.backends {
            let upstream = match number == 0 && self.moved {
                true => stage.there.addr(),
                false => stage.here.addr(),
            };
            let (name, host) = (name(number), host_of(number));
            let _ = write!(
                text,
                "\n[[backends]]\nname = \"{name}\"\nserver_name = \"{host}\"\nupstream = \"{upstream}\"\n"
            );
            if let (0, Some(apps)) = (number, self.apps) {
                let _ = writeln!(text, "allowed_apps = [");
                for app in 0..apps {
                    let _ = writeln!(text, "  \"{app:040x}\",");
                }
                if self.caller_may {
                    let _ = writeln!(text, "  \"{OTHER_APP}\",");
                }
                text += "]\n";
            }
        }
        text
    }
}

/// One that nginx's workers, another user, get into.
pub(crate) fn open_folder(above: &Path) -> TempDir {
    tempfile::Builder::new()
        .prefix("vpc-bench-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir_in(above)
        .expect("a temporary directory")
}

pub(crate) fn name(number: usize) -> String {
    format!("b{number:05}")
}

pub(crate) fn host_of(number: usize) -> String {
    format!("b{number:05}.local")
}

/// A running machine.
pub(crate) struct Site {
    pub(crate) machine: Machine,
    pub(crate) head: String,
}

/// What one edit took, from just before its file was written.
pub(crate) struct Took {
    /// The first call that was decided by it.
    pub(crate) seen: Duration,
    /// The daemon says that it is live and proven.
    pub(crate) verified: Duration,
}

impl Site {
    pub(crate) fn https(&self) -> SocketAddr {
        self.machine.ports.https.addr()
    }

    /// Saves the file and waits until `live` and the daemon say that it is so.
    pub(crate) async fn edit(
        &self,
        stage: &Stage,
        file: &File,
        live: impl AsyncFnMut() -> bool,
    ) -> Result<Took> {
        let text = file.text(&self.head, stage);
        let digest = hex::encode(Sha256::digest(&text));
        let begin = Instant::now();
        replace(&self.machine.config, text.as_bytes());
        let seen = async {
            until(live).await?;
            anyhow::Ok(begin.elapsed())
        };
        let verified = async {
            until(async || self.is_live(&digest).await).await?;
            anyhow::Ok(begin.elapsed())
        };
        let (seen, verified) = tokio::join!(seen, verified);
        let why = || self.machine.logs();
        Ok(Took {
            seen: seen.with_context(why)?,
            verified: verified.with_context(why)?,
        })
    }

    /// Has the first backend where `file` says, and waits until it answers from there.
    pub(crate) async fn move_first(&self, stage: &Stage, file: &File) -> Result<Took> {
        let wanted = if file.moved { "there" } else { "here" };
        let live = async || answers(stage, self.https()).await.as_deref() == Some(wanted);
        self.edit(stage, file, live).await
    }

    /// Waits for what the daemon says next: to ask it again and again would take the processor from those who are measured.
    async fn is_live(&self, digest: &str) -> bool {
        let daemon = Daemon(&self.machine.state);
        // A change between two questions is seen a little later.
        let status = match tokio::time::timeout(MISSED, daemon.next_status()).await {
            Ok(status) => status,
            Err(_) => daemon.status().await,
        };
        status.is_ok_and(|status| status.config.live == digest && !status.owed)
    }

    /// Has the daemon reconcile now, as `dstack-vpc apply` does, and gives its answer.
    pub(crate) async fn ask(&self) -> Result<serde_json::Value> {
        let stream = UnixStream::connect(self.machine.state.daemon_socket()).await?;
        let body = Full::new(Bytes::from_static(br#"{"apply":{"confirm_within":null}}"#));
        let request = http::request(Method::POST, "/do", body).with("content-type", "application/json");
        let reply = http::send_on(stream, request)
            .await
            .map_err(anyhow::Error::from_boxed)?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        Ok(reply.json())
    }

    /// The daemon's pid.
    pub(crate) fn daemon(&self) -> Result<i32> {
        let processes = self.machine.processes().into_iter();
        let mut daemon = processes.filter(|process| process.command.ends_with(" run"));
        Ok(daemon.next().context("the daemon")?.pid)
    }

    /// Bytes on disk below the state directory.
    pub(crate) fn disk(&self) -> u64 {
        fn below(dir: &std::path::Path) -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let sizes = entries.map(|entry| match entry.metadata() {
                Ok(about) if about.is_dir() => below(&entry.path()),
                Ok(about) => about.len(),
                Err(_) => 0,
            });
            sizes.sum()
        }
        below(self.machine.state.root())
    }
}

/// Asks again and again, with a moment for others in between.
pub(crate) async fn until(mut probe: impl AsyncFnMut() -> bool) -> Result<()> {
    let end = Instant::now() + LONGEST;
    while !probe().await {
        ensure!(Instant::now() < end, "waited {LONGEST:?} in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Which server answers a call on a new connection, or the status of a refusal.
pub(crate) async fn answers(stage: &Stage, addr: SocketAddr) -> Option<String> {
    let caller = Caller::with(stage.caller.clone());
    let stream = caller.connect(addr).await.ok()?;
    let reply = http::send_on(stream, get("/").with("host", &host_of(0)))
        .await
        .ok()?;
    match reply.status {
        200 => Some(reply.json()["backend"].as_str()?.to_owned()),
        status => Some(status.to_string()),
    }
}

/// A caller that keeps its connection, as apps do.
pub(crate) struct Kept {
    sender: SendRequest<Empty<Bytes>>,
    connection: JoinHandle<()>,
}

impl Kept {
    pub(crate) async fn open(stage: &Stage, addr: SocketAddr) -> Result<Self> {
        let stream = Caller::with(stage.caller.clone()).connect(addr).await?;
        Self::over(TokioIo::new(stream)).await
    }

    pub(crate) async fn over(
        stream: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    ) -> Result<Self> {
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let connection = tokio::spawn(async move {
            // Its end is seen by the sender.
            let _ = connection.await;
        });
        Ok(Self { sender, connection })
    }

    /// Whether a call of the first backend gets this status.
    pub(crate) async fn gets(&mut self, wanted: u16) -> bool {
        let call = get("/").with("host", &host_of(0));
        self.status(call).await.is_ok_and(|status| status == wanted)
    }

    pub(crate) async fn status(&mut self, request: Request<Empty<Bytes>>) -> Result<u16> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body: Incoming = response.into_body();
        body.collect().await?;
        Ok(status)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
