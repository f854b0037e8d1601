//! supervisord over XML-RPC on its unix socket.
//!
//! Its answers are the truth about its programs; the exit codes of `supervisorctl` are not.

mod converge;
mod rpc;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use dxr::Value;
use tokio::time::Instant;

pub use self::converge::{Converged, Limits};
pub use self::rpc::{Fault, SupervisorError};

type Result<T> = std::result::Result<T, SupervisorError>;

/// supervisord at one socket. Cheap to make; every call opens its own connection.
#[derive(Debug, Clone)]
pub struct Supervisor {
    socket: PathBuf,
    call_timeout: Duration,
}

/// One supervised program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    pub name: String,
    pub group: String,
    pub state: State,
    /// While it runs.
    pub pid: Option<i32>,
    /// Of its last end; 0 before.
    pub exit_status: i32,
    /// supervisord's words, e.g. `Exited too quickly (process log may have details)`; empty when all is well.
    pub spawn_error: String,
    /// For people: `pid 12, uptime 0:01:00`.
    pub description: String,
    /// The last start; `None` when it was never started.
    pub started: Option<SystemTime>,
}

/// `supervisor.states.ProcessStates`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asked to stop, or never started.
    Stopped,
    /// Alive, but not yet for `startsecs`.
    Starting,
    Running,
    /// Ended too soon; the next try follows.
    Backoff,
    Stopping,
    /// Ended by itself and is not started again.
    Exited,
    /// Given up on.
    Fatal,
    Unknown,
}

/// What the file on disk says against what runs, by group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Supervisor {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            // p99 is 9 ms; a machine under load gets some more.
            call_timeout: Duration::from_secs(5),
        }
    }

    /// The limit for one call; waiting for a program to start or stop has its own.
    pub fn with_call_timeout(self, call_timeout: Duration) -> Self {
        Self { call_timeout, ..self }
    }

    /// It answers and takes orders (it does not while it shuts down).
    pub async fn alive(&self) -> Result<()> {
        self.call("supervisor.getState", vec![]).await.map(|_| ())
    }

    /// supervisord's own pid.
    pub async fn pid(&self) -> Result<i32> {
        let value = self.call("supervisor.getPID", vec![]).await?;
        integer(&value).ok_or_else(|| garbled("supervisor.getPID", "not a number"))
    }

    /// Every program it knows.
    pub async fn all(&self) -> Result<Vec<ProcessInfo>> {
        let method = "supervisor.getAllProcessInfo";
        match self.call(method, vec![]).await? {
            Value::Array(rows) => rows.iter().map(|row| process(method, row)).collect(),
            _ => Err(garbled(method, "not a list")),
        }
    }

    /// One program; [`Fault::BadName`] when it is not known.
    pub async fn process(&self, name: &str) -> Result<ProcessInfo> {
        let method = "supervisor.getProcessInfo";
        process(method, &self.call(method, vec![text(name)]).await?)
    }

    /// Reads the file again and says what differs; nothing is applied, and the answer stays the same until it
    /// is. [`Fault::CantReread`] when the file is bad.
    pub async fn reload_config(&self) -> Result<Changes> {
        let method = "supervisor.reloadConfig";
        // The answer is [[added, changed, removed]].
        let value = self.call(method, vec![]).await?;
        let Value::Array(outer) = value else {
            return Err(garbled(method, "not a list"));
        };
        let Some([added, changed, removed]) = outer.first().and_then(|inner| match inner {
            Value::Array(lists) => lists.get(..3),
            _ => None,
        }) else {
            return Err(garbled(method, "not three lists"));
        };
        let names = |list: &Value| match list {
            Value::Array(names) => Ok(names.iter().filter_map(string).collect()),
            _ => Err(garbled(method, "not a list of names")),
        };
        Ok(Changes {
            added: names(added)?,
            changed: names(changed)?,
            removed: names(removed)?,
        })
    }

    /// Makes a group of the last read file known; its programs start. [`Fault::AlreadyAdded`] when it is.
    pub async fn add_group(&self, name: &str) -> Result<()> {
        self.order("supervisor.addProcessGroup", vec![text(name)]).await
    }

    /// Forgets a group; [`Fault::StillRunning`] unless it was stopped before.
    pub async fn remove_group(&self, name: &str) -> Result<()> {
        self.order("supervisor.removeProcessGroup", vec![text(name)])
            .await
    }

    /// Starts a program and, when `wait` is given, sees it reach RUNNING within that time.
    /// One that runs already is fine.
    pub async fn start(&self, name: &str, wait: Option<Duration>) -> Result<()> {
        let params = vec![text(name), Value::Boolean(false)];
        match self.order("supervisor.startProcess", params).await {
            Err(e) if e.fault() == Some(Fault::AlreadyStarted) => {}
            other => other?,
        }
        match wait {
            Some(within) => self.wait_running(name, within).await,
            None => Ok(()),
        }
    }

    /// Asks a program to end and, when `wait` is given, sees it gone within that time.
    /// One that does not run is fine.
    pub async fn stop(&self, name: &str, wait: Option<Duration>) -> Result<()> {
        let params = vec![text(name), Value::Boolean(false)];
        match self.order("supervisor.stopProcess", params).await {
            Err(e) if e.fault() == Some(Fault::NotRunning) => {}
            other => other?,
        }
        match wait {
            Some(within) => self.wait_ended(name, within).await,
            None => Ok(()),
        }
    }

    /// Stops, then starts, each within its limit.
    pub async fn restart(&self, name: &str, limits: Limits) -> Result<()> {
        self.stop(name, Some(limits.stop)).await?;
        self.start(name, Some(limits.start)).await
    }

    /// Sees a program run again that has just ended without being stopped; `was` is the pid it had, which supervisord
    /// may still believe to run.
    pub async fn start_again(&self, name: &str, was: Option<i32>, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        // Each question wakes it up, and then it looks.
        while was.is_some() && self.process(name).await?.pid == was && Instant::now() < deadline {
            tokio::time::sleep(NOTICE).await;
        }
        self.start(name, Some(within)).await
    }

    /// Sends a signal by its name without `SIG`: `HUP`. [`Fault::NotRunning`] when there is nobody to hear it.
    pub async fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let params = vec![text(name), text(signal)];
        self.order("supervisor.signalProcess", params).await
    }

    /// The last `bytes` of what a program wrote to stderr. Empty when that goes to supervisord's own output.
    pub async fn tail_stderr(&self, name: &str, bytes: u16) -> Result<String> {
        let method = "supervisor.readProcessStderrLog";
        let params = vec![text(name), Value::Integer(-i32::from(bytes)), Value::Integer(0)];
        match self.call(method, params).await {
            Ok(value) => Ok(string(&value).unwrap_or_default()),
            // A pipe or a terminal cannot be read back.
            Err(e) if matches!(e.fault(), Some(Fault::NoFile | Fault::Failed)) => Ok(String::new()),
            Err(e) => Err(e),
        }
    }

    /// Stops every program, then supervisord itself.
    pub async fn shutdown(&self) -> Result<()> {
        self.order("supervisor.shutdown", vec![]).await
    }

    async fn wait_running(&self, name: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let (mut last, mut falls) = (State::Unknown, 0);
        loop {
            let info = self.process(name).await?;
            // One fall may be bad luck, such as a port that its predecessor has not let go of yet.
            falls += u8::from(info.state == State::Backoff && last != State::Backoff);
            last = info.state;
            let given_up = falls > 1 || matches!(info.state, State::Fatal | State::Exited | State::Unknown);
            match info.state {
                State::Running => return Ok(()),
                _ if given_up || Instant::now() >= deadline => return Err(self.failed(info).await),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn wait_ended(&self, name: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let info = self.process(name).await?;
            match info.state {
                State::Stopped | State::Exited | State::Fatal | State::Unknown => return Ok(()),
                _ if Instant::now() >= deadline => {
                    return Err(SupervisorError::TooLong {
                        name: info.name,
                        state: info.state,
                        after: within,
                    });
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Why a program is not up, in supervisord's and its own words.
    async fn failed(&self, info: ProcessInfo) -> SupervisorError {
        let log = self.tail_stderr(&info.name, 2000).await.unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        let why = match info.spawn_error.is_empty() {
            true => info.description,
            false => info.spawn_error,
        };
        SupervisorError::Failed {
            name: info.name,
            state: info.state,
            why,
            log: last,
        }
    }

    async fn order(&self, method: &'static str, params: Vec<Value>) -> Result<()> {
        self.call(method, params).await.map(|_| ())
    }

    async fn call(&self, method: &'static str, params: Vec<Value>) -> Result<Value> {
        rpc::call(&self.socket, method, params, self.call_timeout).await
    }
}

impl ProcessInfo {
    /// It ran once and was told to stop; one that ended by itself is EXITED or FATAL instead. When we did not
    /// tell it, an operator did.
    pub fn stopped_on_request(&self) -> bool {
        self.state == State::Stopped && self.started.is_some()
    }
}

impl fmt::Display for State {
    /// As supervisord writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// A call takes about 1 ms, so looking this often costs nothing and is never late.
const POLL: Duration = Duration::from_millis(50);

/// Nobody serves meanwhile.
const NOTICE: Duration = Duration::from_millis(5);

fn process(method: &'static str, value: &Value) -> Result<ProcessInfo> {
    let Value::Struct(fields) = value else {
        return Err(garbled(method, "not a struct"));
    };
    let words = |key: &str| fields.get(key).and_then(string);
    let number = |key: &str| fields.get(key).and_then(integer);
    let missing = |key: &str| garbled(method, &format!("{key} is missing"));
    let started = number("start")
        .and_then(|s| u64::try_from(s).ok())
        .filter(|&s| s > 0);
    Ok(ProcessInfo {
        name: words("name").ok_or_else(|| missing("name"))?,
        group: words("group").ok_or_else(|| missing("group"))?,
        state: state(number("state").ok_or_else(|| missing("state"))?),
        pid: number("pid").filter(|&pid| pid > 0),
        exit_status: number("exitstatus").unwrap_or_default(),
        spawn_error: words("spawnerr").unwrap_or_default(),
        description: words("description").unwrap_or_default(),
        started: started.map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s)),
    })
}

fn state(code: i32) -> State {
    match code {
        0 => State::Stopped,
        10 => State::Starting,
        20 => State::Running,
        30 => State::Backoff,
        40 => State::Stopping,
        100 => State::Exited,
        200 => State::Fatal,
        _ => State::Unknown,
    }
}

fn garbled(method: &'static str, why: &str) -> SupervisorError {
    SupervisorError::Garbled {
        method,
        why: why.to_owned(),
    }
}

fn text(s: &str) -> Value {
    Value::String(s.to_owned())
}

fn string(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i32> {
    match value {
        Value::Integer(n) => Some(*n),
        _ => None,
    }
}
