//! The other side as OpenSSL plays it: with keys, versions and wishes that no careful library has.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is too weak by default is allowed here: it is ours to refuse it.
const ANYTHING: &str = "ALL:@SECLEVEL=0";

/// A file of `tests/weak_keys`: key, leaf, App CA.
pub fn chain(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/weak_keys");
    folder.join(name).with_extension("pem")
}

/// `openssl <role>` with a chain and more options.
fn openssl(role: &str, name: &str, options: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.arg(role);
    for option in ["-cert", "-key", "-cert_chain"] {
        command.arg(option).arg(chain(name));
    }
    command.args(["-cipher", ANYTHING]).args(options);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

const MISSING: &str = "openssl is not installed: run `make setup`";

/// `openssl s_server`, which says all it hears.
pub struct Server {
    pub addr: SocketAddr,
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<String>>,
}

impl Server {
    pub fn start(name: &str, options: &[&str]) -> Self {
        let mut command = openssl("s_server", name, &["-accept", "127.0.0.1:0"]);
        let mut child = command.args(options).spawn().expect(MISSING);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let addr = loop {
            line.clear();
            assert!(
                stdout.read_line(&mut line).unwrap() > 0,
                "s_server does not start"
            );
            if let Some(addr) = line.strip_prefix("ACCEPT ") {
                break addr.trim().parse().unwrap();
            }
        };
        let said: Arc<Mutex<String>> = Arc::default();
        collect(stdout, &said);
        collect(child.stderr.take().unwrap(), &said);
        Self {
            addr,
            stdin: child.stdin.take().unwrap(),
            child,
            said,
        }
    }

    /// To the client, except for the commands of s_server.
    pub fn say(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    /// Waits until it has said this, what it heard among it.
    pub async fn until(&self, text: &str) {
        let wait = async {
            while !self.said().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "not {text:?}: {}", self.said());
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) {
    let into = Arc::clone(into);
    // It ends with the process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
}

/// `openssl s_client` says `request`, or does what its commands say; with `-ign_eof` it hears the answer to its end. All that
/// it printed.
pub async fn client(name: &str, to: SocketAddr, options: &[&str], request: &str) -> String {
    let to = to.to_string();
    let mut command = openssl("s_client", name, &["-connect", &to]);
    let mut child = command.args(options).spawn().expect(MISSING);
    let request = request.to_owned();
    let done = tokio::task::spawn_blocking(move || {
        let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
        child.wait_with_output().unwrap()
    });
    let output = done.await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}
