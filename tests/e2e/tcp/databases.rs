//! Real databases from Debian, and sessions of their own clients.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process;
use tokio::time::timeout;

use crate::common::poll;
use crate::common::ports::Port;
use crate::common::process::Watchdog;

/// For a database to come up, and for an answer on a busy computer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database on a port of 127.0.0.1. It ends with this, data and all.
pub(super) struct Database {
    pub(super) port: Port,
    child: Child,
    _watchdog: Watchdog,
    dir: TempDir,
}

impl Database {
    pub(super) async fn postgres() -> Self {
        let port = Port::reserve();
        let dir = TempDir::with_prefix("vpc-postgres-").expect("a folder");
        let mut command = Command::new("sh");
        // It will not run as root, and its package brings a user.
        if geteuid().is_root() {
            let user = User::from_name("postgres").ok().flatten();
            let user = user.expect("the user postgres. Run `make setup`");
            chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
            command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
        }
        let script = r#""$1/initdb" -D "$2/data" -U postgres -A trust -N -E UTF8 --no-locale --no-instructions >"$2/log" 2>&1 &&
            exec "$1/postgres" -D "$2/data" -h 127.0.0.1 -p "$3" -k "" -F >>"$2/log" 2>&1"#;
        command.args(["-c", script, "postgres"]);
        command
            .arg(postgres_programs())
            .arg(dir.path())
            .arg(port.number().to_string());
        let database = Self::start(command, port, dir);
        let up = poll(PATIENCE, async || {
            let mut session = Session::psql(&database.port);
            (session.ask("select 1;").await? == "1").then_some(())
        });
        up.await
            .unwrap_or_else(|| panic!("postgres does not come up:\n{}", database.log()));
        database
    }

    pub(super) async fn redis() -> Self {
        let port = Port::reserve();
        let dir = TempDir::with_prefix("vpc-redis-").expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.number().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--logfile"]);
        command.arg(dir.path().join("log")).current_dir(dir.path());
        let database = Self::start(command, port, dir);
        let up = poll(PATIENCE, async || {
            tokio::net::TcpStream::connect(database.port.addr()).await.ok()
        });
        up.await
            .unwrap_or_else(|| panic!("redis does not come up:\n{}", database.log()));
        database
    }

    fn start(mut command: Command, port: Port, dir: TempDir) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}. Run `make setup`"));
        Self {
            port,
            _watchdog: Watchdog::over(child.id()),
            child,
            dir,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Both take it for "soon, whoever is connected", even where it was ignored by who started us; killed, postgres would
        // leave its children behind.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        let _ = self.child.wait();
    }
}

/// Debian has them beside each other by version, the newest is as good as any.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let folders = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let newest = folders.filter(|folder| folder.join("initdb").exists()).max();
    newest.expect("the programs of PostgreSQL. Run `make setup`")
}

/// A client that is spoken to line by line.
pub(super) struct Session {
    words: process::ChildStdin,
    answers: Lines<BufReader<process::ChildStdout>>,
    _client: process::Child,
}

impl Session {
    /// `psql`, which says nothing but the values it is asked for, and never connects again.
    pub(super) fn psql(at: &Port) -> Self {
        let to = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            at.number()
        );
        Self::start(
            postgres_programs().join("psql"),
            &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &to],
        )
    }

    /// `redis-cli`, without words for commands that come. It connects again when it was cut off, so its id is to be
    /// looked at.
    pub(super) fn redis(at: &Port, words: &[&str]) -> Self {
        let port = at.number().to_string();
        Self::start("redis-cli", &[&["-h", "127.0.0.1", "-p", &port], words].concat())
    }

    fn start(program: impl AsRef<OsStr>, args: &[&str]) -> Self {
        let mut client = process::Command::new(program.as_ref())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}. Run `make setup`", program.as_ref()));
        let (words, answers) = (client.stdin.take(), client.stdout.take());
        Self {
            words: words.expect("piped"),
            answers: BufReader::new(answers.expect("piped")).lines(),
            _client: client,
        }
    }

    /// Its answer of one line; `None`: the client ended instead.
    pub(super) async fn ask(&mut self, words: &str) -> Option<String> {
        self.words.write_all(format!("{words}\n").as_bytes()).await.ok()?;
        self.hear().await
    }

    /// The next line.
    pub(super) async fn hear(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.answers.next_line()).await;
        line.expect("a line or the end").ok()?
    }
}
