//! The daemon's own socket, for the commands of this program: HTTP over `run/daemon.sock`, owner only.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::source::Source;
use super::status::Status;
use crate::api::NodeRow;
use crate::apply::Real;
use crate::paths::StateDir;

/// What a command asks of the running daemon.
pub(super) enum Ask {
    Do(Order, oneshot::Sender<Answer>),
    /// Fetch a new certificate now.
    Renew,
}

/// What is answered when it has been done.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) what: What,
    /// For people: the command and its user.
    pub(super) by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Reconcile now, also what failed before or is held back. With a time: go back unless it is confirmed.
    Apply { confirm_within: Option<Duration> },
    /// Keep what is live.
    Confirm,
    /// Serve the settings of an earlier generation: this one, or the last that had others.
    Rollback { to: Option<u32> },
}

impl What {
    fn command(self) -> &'static str {
        match self {
            Self::Apply { .. } => "apply",
            Self::Confirm => "confirm",
            Self::Rollback { .. } => "rollback",
        }
    }
}

/// How an asked-for reconcile went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    pub live: bool,
    pub changed: bool,
    pub generation: Option<u32>,
    /// A sentence, or the error as a person should read it.
    pub message: String,
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Where, and what starts it.
    #[error("no daemon runs on {0}")]
    NotRunning(String),
    #[error("the daemon does not answer: {0}")]
    Broken(String),
}

/// Docker's own limit for a health check is 30 s; a daemon that takes this long to say how it is hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// In bytes: a million nodes.
const MAX_ANSWER: usize = 1 << 30;

/// How long a watcher hears nothing when nothing changes.
const QUIET: Duration = Duration::from_secs(10);

/// What the socket's answers are made from.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) status: watch::Receiver<Status>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) machine: Arc<Real>,
    pub(super) source: Source,
}

impl Shared {
    /// The status, and whether what is wished has changed since: whoever saves a file and asks at once is not told of the
    /// one before as if it were this.
    async fn status(self) -> Json<Status> {
        // A file system that hangs must not hold up others who ask.
        let now = tokio::task::spawn_blocking(move || self.source.fingerprint()).await;
        let mut status = self.status.borrow().clone();
        if now.is_ok_and(|now| now != status.config.fingerprint) {
            status.config.generation += 1;
        }
        Json(status)
    }
}

/// Serves until cancelled. The socket is there when this returns its future.
pub(super) fn serve(
    state: &StateDir,
    shared: Shared,
    cancel: CancellationToken,
) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
    let path = state.daemon_socket();
    // The lock is ours, so a socket that is there is one that a killed daemon left.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind(&path)?;
    let app = Router::new()
        .route(
            "/status",
            get(async |State(shared): State<Shared>| shared.status().await),
        )
        .route("/status/next", get(next_status))
        .route("/do", post(order))
        .route("/renew", post(renew))
        .route("/nodes", get(nodes))
        .with_state(shared);
    Ok(async move {
        axum::serve(listener, app.into_make_service_with_connect_info::<Caller>())
            .with_graceful_shutdown(cancel.cancelled_owned())
            .await
    })
}

/// Socket paths are limited to about 107 bytes by the kernel: said in words instead of `EINVAL`.
fn bind(path: &Path) -> io::Result<UnixListener> {
    // It gets its name once it has its mode: nobody else can connect for a moment, whatever the umask is.
    let unnamed = path.with_extension("new");
    let _ = std::fs::remove_file(&unnamed);
    let listener = UnixListener::bind(&unnamed).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => io::Error::other(format!(
            "{} is too long for a unix socket; choose a shorter --state-dir",
            path.display()
        )),
        _ => error,
    })?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

async fn next_status(State(mut shared): State<Shared>) -> Json<Status> {
    shared.status.mark_unchanged();
    // A quiet daemon answers all the same, so that a watcher sees that it lives.
    let _ = tokio::time::timeout(QUIET, shared.status.changed()).await;
    shared.status().await
}

async fn order(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(what): Json<What>,
) -> Result<Json<Answer>, StatusCode> {
    let (sender, answer) = oneshot::channel();
    let by = format!("`dstack-vpc {}` by {caller}", what.command());
    shared
        .asks
        .send(Ask::Do(Order { what, by }, sender))
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    answer
        .await
        .map(Json)
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Clone)]
struct Caller(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(uid) = self.0.map(|it| it.uid()) else {
            return f.write_str("somebody");
        };
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        match user {
            Some(user) => f.write_str(&user.name),
            None => write!(f, "user {uid}"),
        }
    }
}

async fn renew(State(shared): State<Shared>) -> StatusCode {
    match shared.asks.send(Ask::Renew).await {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn nodes(State(shared): State<Shared>) -> Json<Option<Result<Vec<NodeRow>, String>>> {
    Json(shared.machine.nodes().await)
}

/// The commands' side of the socket.
pub struct Daemon<'a>(pub &'a StateDir);

impl Daemon<'_> {
    /// What it says of itself.
    pub async fn status(&self) -> Result<Status, AskError> {
        within(ANSWER, self.ask(Method::GET, "/status")).await
    }

    /// It runs, and may be too busy to say more.
    pub fn is_there(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.0.daemon_socket()).is_ok()
    }

    /// The same, at its next change, ten seconds from now at the latest.
    pub async fn next_status(&self) -> Result<Status, AskError> {
        within(QUIET + ANSWER, self.ask(Method::GET, "/status/next")).await
    }

    /// Reconciles now. With a time, what comes to serve goes back after it unless it is confirmed.
    pub async fn apply(&self, confirm_within: Option<Duration>) -> Result<Answer, AskError> {
        self.order(What::Apply { confirm_within }).await
    }

    /// Keeps what is live.
    pub async fn confirm(&self) -> Result<Answer, AskError> {
        self.order(What::Confirm).await
    }

    /// Goes back to a generation, or to the last that had other settings.
    pub async fn rollback(&self, to: Option<u32>) -> Result<Answer, AskError> {
        self.order(What::Rollback { to }).await
    }

    /// Asks for a new certificate; it comes in its own time.
    pub async fn renew(&self) -> Result<(), AskError> {
        self.send(Method::POST, "/renew", Bytes::new()).await.map(drop)
    }

    /// The nodes of the registry, or why they cannot be told; `None`: the machine is no server.
    pub async fn nodes(&self) -> Result<Option<Result<Vec<NodeRow>, String>>, AskError> {
        within(ANSWER, self.ask(Method::GET, "/nodes")).await
    }

    /// `up` would refuse where supervisord runs.
    fn missing(&self) -> String {
        let root = self.0.root().display();
        match std::os::unix::net::UnixStream::connect(self.0.supervisor_socket()) {
            Ok(_) => {
                let conf = self.0.current().join("supervisor/supervisord.conf");
                let conf = conf.display();
                format!("{root}, but supervisord does; `supervisorctl -c {conf} start dstack-vpc` starts it")
            }
            Err(_) => format!("{root}; `dstack-vpc up` starts one"),
        }
    }

    async fn order(&self, what: What) -> Result<Answer, AskError> {
        let body = serde_json::to_vec(&what).expect("plain data serialises");
        read(&self.send(Method::POST, "/do", body.into()).await?)
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, AskError> {
        read(&self.send(method, path, Bytes::new()).await?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, AskError> {
        let broken = |error: &dyn std::fmt::Display| AskError::Broken(error.to_string());
        let socket = self.0.daemon_socket();
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(AskError::Broken(format!(
                    "{}: {error}; run this as the daemon's user",
                    socket.display()
                )));
            }
            Err(_) => return Err(AskError::NotRunning(self.missing())),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "daemon")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| broken(&e))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| broken(&e))?;
            match status.is_success() {
                true => Ok(body.to_bytes()),
                false => Err(AskError::Broken(format!("it answered {status}"))),
            }
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => {
                ended.map_err(|e| broken(&e))?;
                exchange.await
            }
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(body).map_err(|error| AskError::Broken(error.to_string()))
}

/// A daemon that is stopped or hangs keeps its socket and accepts no more: said instead of waiting for ever.
async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, AskError>>,
) -> Result<T, AskError> {
    tokio::time::timeout(limit, asking)
        .await
        .unwrap_or_else(|_| Err(AskError::Broken(format!("nothing came within {limit:?}"))))
}
