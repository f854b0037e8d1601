//! `dstack-vpc dev-agent` as people start it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use dstack_vpc::agent::{AgentClient, AgentError, TlsKeyRequest};
use dstack_vpc::spec::AgentAddr;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const APP_A: &str = "aa00000000000000000000000000000000000001";
const APP_B: &str = "bb00000000000000000000000000000000000002";

struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("dstack-vpc"))
            .arg("dev-agent")
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads on until a line has these words.
    fn until(&mut self, words: &str) {
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.contains(words)) {
            assert_ne!(
                self.stderr.read_line(&mut said).unwrap(),
                0,
                "never {words:?} in {said:?}"
            );
        }
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(socket: &Path) -> AgentClient {
    AgentClient::new(AgentAddr::Unix(socket.to_owned()), Duration::from_secs(10))
}

async fn root(socket: &Path) -> String {
    let request = TlsKeyRequest {
        subject: String::new(),
        alt_names: Vec::new(),
        usage_ra_tls: false,
        usage_server_auth: true,
        usage_client_auth: true,
        not_before: None,
        not_after: None,
    };
    client(socket)
        .get_tls_key(&request)
        .await
        .unwrap()
        .certificate_chain
        .pop()
        .unwrap()
}

#[tokio::test]
async fn two_processes_share_a_root_and_survive_being_killed() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a.sock", "b.sock"].map(|name| dir.path().join(name));
    let root_dir = dir.path().join("root").display().to_string();
    let listen = |socket: &Path, app: &str| format!("unix:{}={app}", socket.display());
    let start =
        |listen: &str| Process::start(&["--root-dir", &root_dir, "--listen", listen, "--fail-first", "1"]);

    let (on_a, on_b) = (listen(&a, APP_A), listen(&b, APP_B));
    let (mut one, mut two) = (start(&on_a), start(&on_b));
    for (process, app) in [(&mut one, APP_A), (&mut two, APP_B)] {
        process.until("NOTHING IS ATTESTED");
        process.until(app);
    }
    for (socket, app) in [(&a, APP_A), (&b, APP_B)] {
        assert!(
            matches!(client(socket).info().await, Err(AgentError::Status { .. })),
            "--fail-first"
        );
        assert_eq!(client(socket).info().await.unwrap().app_id.to_string(), app);
    }
    assert_eq!(root(&a).await, root(&b).await);

    let before = root(&a).await;
    one.end(Signal::SIGKILL);
    assert!(
        matches!(client(&a).info().await, Err(AgentError::Refused { .. })),
        "a stale socket"
    );
    let mut one = start(&on_a);
    one.until(APP_A);
    assert!(client(&a).info().await.is_err(), "--fail-first");
    assert_eq!(root(&a).await, before);

    for (process, signal) in [(one, Signal::SIGTERM), (two, Signal::SIGINT)] {
        assert!(process.end(signal).success());
    }
    assert!(!a.exists() && !b.exists());
}

#[test]
fn a_place_that_is_taken_is_told_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("http://{}", taken.local_addr().unwrap());
    let output = Command::new(assert_cmd::cargo::cargo_bin!("dstack-vpc"))
        .args(["dev-agent", "--listen", &listen])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&format!("cannot listen on {listen}")), "{error}");
    assert!(
        error.contains(&format!("(pid {},", std::process::id())),
        "{error}"
    );
}
