//! One machine: `dstack-vpc up` with everything below it, started, asked, edited and ended.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dstack_vpc::agent::dev::Issued;
use dstack_vpc::paths::StateDir;
use dstack_vpc::reconcile::status::{Condition, ConditionKind, Status};
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Body;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

use super::http::{self, Reply};
use super::launch::Launch;
use super::netns::{Host, Namespace};
use super::poll;
use super::ports::Port;
use super::process::{self, Process, Watchdog};
use super::secrets::Secrets;
use super::tls::Caller;

/// How long a machine may take to serve: the test machine is small and runs other tests meanwhile.
const START: Duration = Duration::from_secs(60);
/// How long an edit may take to be live or refused.
pub const EDIT: Duration = Duration::from_secs(30);

/// A machine that is not started yet: its directory, ports and `vpc.toml` are there and can be changed.
pub struct Plan {
    pub dir: TempDir,
    pub ports: Ports,
    pub toml: String,
    pub env: Vec<(String, String)>,
    pub program: PathBuf,
    /// Starts as this user instead of our own.
    pub user: Option<&'static str>,
    /// Runs in this host; `None`: in ours.
    pub host: Option<Arc<Namespace>>,
    /// As in a container: `env` is its whole environment, and no file is named to it.
    pub contained: bool,
}

/// The four listeners of the mesh.
pub struct Ports {
    pub client: Port,
    pub auth: Port,
    pub http: Port,
    pub https: Port,
}

/// Which front the machines have: `FRONT` says so, for a whole run of tests.
pub fn front() -> String {
    std::env::var("FRONT").unwrap_or_else(|_| "nginx".to_owned())
}

/// Whether that is nginx: a process and a file of its own.
pub fn has_nginx() -> bool {
    front() == "nginx"
}

impl Plan {
    /// A mesh machine whose guest agent is at `socket`, whose calls all go to `gateway`, and that serves
    /// `backends` as (name, server_name, upstream).
    pub fn new(socket: &Path, gateway: SocketAddr, backends: &[(&str, &str, SocketAddr)]) -> Self {
        let ports = Ports {
            client: Port::reserve(),
            auth: Port::reserve(),
            http: Port::reserve(),
            https: Port::reserve(),
        };
        let mut toml = format!(
            r#"version = 1
role = "mesh"

[dstack]
agent = "unix:{agent}"
gateway_domain = "fixed/{gateway}"

[mesh]
client_listen = "{client}"
auth_listen = "{auth}"
http_listen = "{http}"
https_listen = "{https}"
front = "{front}"

[reconcile]
probe_timeout = "3s"

[log]
level = "info"
"#,
            agent = socket.display(),
            client = ports.client,
            auth = ports.auth,
            http = ports.http,
            https = ports.https,
            front = front(),
        );
        for (name, server_name, upstream) in backends {
            toml += &format!(
                "\n[[backends]]\nname = \"{name}\"\nserver_name = \"{server_name}\"\nupstream = \"{upstream}\"\n"
            );
        }
        Self {
            dir: directory(),
            ports,
            toml,
            env: Vec::new(),
            program: super::binary(),
            user: None,
            host: None,
            contained: false,
        }
    }

    /// A machine that has `host` for itself, and so all the ports where they are by default.
    pub fn in_host(host: &Host, toml: String) -> Self {
        Self {
            dir: directory(),
            ports: Ports {
                client: Port::fixed(8091),
                auth: Port::fixed(8092),
                http: Port::fixed(80),
                https: Port::fixed(443),
            },
            toml,
            env: Vec::new(),
            program: super::binary(),
            user: None,
            host: Some(host.inside.clone()),
            contained: false,
        }
    }

    /// nginx is the front, whatever `FRONT` says: for what only a program beside the daemon shows.
    pub fn insist_on_nginx(&mut self) {
        let front = format!("front = \"{}\"", front());
        self.toml = self.toml.replace(&front, "front = \"nginx\"");
    }

    /// Writes `vpc.toml` and starts `up`, without waiting for anything.
    pub fn spawn(self) -> Machine {
        let config = self.dir.path().join("vpc.toml");
        replace(&config, self.toml.as_bytes());
        let state = StateDir::new(self.dir.path().join("state"));
        let log_path = self.dir.path().join("up.log");
        File::create(&log_path).expect("a log file");
        if let Some(user) = self.user {
            let user = nix::unistd::User::from_name(user)
                .ok()
                .flatten()
                .expect("the user");
            for path in [self.dir.path(), &config, &log_path] {
                std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                    .expect("chown");
            }
        }
        let program = match self.user {
            None => self.program,
            Some(_) => super::copy_binary(self.dir.path()),
        };
        let launch = Launch {
            program,
            user: self.user,
            host: self.host,
            env: self.env,
            state: state.root().to_owned(),
            config: config.clone(),
            contained: self.contained,
            log: log_path,
        };
        let child = launch.spawn();
        Machine {
            watchdog: Some(Watchdog::over(child.id())),
            dir: self.dir,
            ports: self.ports,
            state,
            config,
            launch,
            child,
        }
    }

    /// Starts `up` and waits until it serves.
    pub async fn start(self) -> Machine {
        let machine = self.spawn();
        machine.until_ready().await;
        machine
    }
}

/// A started machine. Dropping it ends every process of it.
pub struct Machine {
    watchdog: Option<Watchdog>,
    pub dir: TempDir,
    pub ports: Ports,
    pub state: StateDir,
    pub config: PathBuf,
    launch: Launch,
    child: Child,
}

impl Machine {
    /// Waits until the daemon says that everything that should serve does.
    pub async fn until_ready(&self) -> Status {
        let ready = |status: &Status| holds(status, ConditionKind::Ready);
        self.until(START, "it is ready", ready).await
    }

    /// Waits until `status` is as wanted; panics with the status and the logs when it does not come to it.
    pub async fn until(&self, limit: Duration, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let found = poll(limit, async || self.status().await.filter(&wanted)).await;
        match found {
            Some(status) => status,
            None => {
                let status = self.status().await;
                panic!("waited {limit:?}, but not: {what}\n{status:#?}\n{}", self.logs());
            }
        }
    }

    /// What the daemon says of itself, `None` while it does not answer.
    pub async fn status(&self) -> Option<Status> {
        let stream = UnixStream::connect(self.state.daemon_socket()).await.ok()?;
        let reply = http::send_on(stream, http::get("/status")).await.ok()?;
        serde_json::from_slice(&reply.body).ok()
    }

    /// Has the daemon fetch a new certificate now.
    pub async fn ask_for_renewal(&self) {
        let asked = self.cli(&["renew"]);
        assert!(asked.status.success(), "{asked:?}");
    }

    /// Runs a command of the program against this machine's file and state directory.
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut command = self.launch.command(&self.launch.program);
        self.launch.settings(&mut command);
        let output = command
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("the dstack-vpc binary");
        // As every file at the end.
        let secrets = Secrets::of(self.state.root());
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let leaks = secrets.in_text(&format!("what {args:?} says"), &String::from_utf8_lossy(&said));
        assert!(leaks.is_empty(), "{leaks:#?}");
        output
    }

    /// Changes `vpc.toml` the way editors do, and waits until the daemon has settled on it: live or refused.
    pub async fn edit(&self, change: impl FnOnce(String) -> String) -> Status {
        let saved = self.save(change).await;
        self.settled(&saved).await
    }

    /// Changes `vpc.toml` and waits for nothing.
    pub async fn save(&self, change: impl FnOnce(String) -> String) -> Saved {
        let text = fs::read_to_string(&self.config).expect("vpc.toml");
        let changed = change(text.clone());
        assert_ne!(text, changed, "the edit changes nothing");
        let before = self.status().await.expect("the daemon answers").config.observed;
        replace(&self.config, changed.as_bytes());
        Saved {
            before,
            at: Instant::now(),
        }
    }

    /// Waits until the daemon has settled on what was saved: live or refused.
    pub async fn settled(&self, saved: &Saved) -> Status {
        self.until(EDIT, "it has settled on the edit", |status| {
            status.config.observed != saved.before && !status.owed && is_settled(status)
        })
        .await
    }

    /// Sends a request the way a local app does, to `http_listen`.
    pub async fn call<B>(&self, request: Request<B>) -> Result<Reply, http::Error>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<http::Error>,
    {
        http::send_on(self.launch.connect(self.ports.http.addr()).await?, request).await
    }

    /// Sends a request the way another machine does, to `https_listen`.
    pub async fn call_as_peer(
        &self,
        identity: Option<Issued>,
        request: Request<Empty<Bytes>>,
    ) -> Result<Reply, http::Error> {
        let caller = Caller {
            identity,
            ..Caller::default()
        };
        http::send_on(caller.connect(self.ports.https.addr()).await?, request).await
    }

    /// A plain connection to `http_listen`.
    pub async fn connect(&self) -> TcpStream {
        self.launch
            .connect(self.ports.http.addr())
            .await
            .expect("http_listen")
    }

    /// Everything that runs for this machine.
    pub fn processes(&self) -> Vec<Process> {
        process::tree(self.child.id() as i32, self.dir.path())
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            match self.child.try_wait().expect("our own child") {
                Some(status) => return status,
                None if Instant::now() > end => panic!("still running after SIGTERM\n{}", self.logs()),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// To the process that a container runtime would signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("our own child");
    }

    /// The pid of `up`, which becomes that of supervisord.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether that process is gone.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits for `up` to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + START;
        loop {
            match self.child.try_wait().expect("our own child") {
                Some(status) => return status,
                None if Instant::now() > end => panic!("still running\n{}", self.logs()),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Ends every process at once.
    pub fn crash(&mut self) {
        self.end();
    }

    /// Ends every process at once and starts again on the same directory.
    pub fn crash_and_spawn(mut self) -> Self {
        self.crash();
        self.spawn_again();
        self
    }

    /// Starts again on the same directory, whatever still runs there.
    pub fn spawn_again(&mut self) {
        self.child = self.launch.spawn();
        self.watchdog = Some(Watchdog::over(self.child.id()));
    }

    /// Where the secrets of this machine, or of others, stand and must not.
    pub fn leaks(&self, secrets: &Secrets) -> Vec<String> {
        secrets.leaks(self.dir.path(), self.state.root(), &self.processes())
    }

    /// What `up` and everything below it wrote.
    pub fn logs(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default();
        let skip = text.lines().count().saturating_sub(80);
        let tail: Vec<_> = text.lines().skip(skip).collect();
        format!(
            "--- {} (the last lines)\n{}",
            self.dir.path().display(),
            tail.join("\n")
        )
    }

    fn end(&mut self) {
        self.watchdog = None;
        process::kill_tree(self.child.id() as i32, self.dir.path());
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            return self.end();
        }
        let leaks = self.leaks(&Secrets::of(self.state.root()));
        self.end();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}

/// For the state and the files of one machine.
fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("vpc-machine-")
        // nginx' workers are another user and must get in.
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("a temporary directory")
}

/// An edit on its way.
pub struct Saved {
    /// The digest of what the daemon had read last.
    before: String,
    /// When the new file had its name.
    pub at: Instant,
}

/// Whether a condition is there and true.
pub fn holds(status: &Status, kind: ConditionKind) -> bool {
    status.condition(kind).is_some_and(Condition::holds)
}

/// Live, or refused with a reason.
fn is_settled(status: &Status) -> bool {
    holds(status, ConditionKind::Configured) || status.last_error.is_some()
}

/// Writes a file as editors do: complete under another name, then renamed.
pub fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).expect("write");
    fs::rename(&new, path).expect("rename");
}
