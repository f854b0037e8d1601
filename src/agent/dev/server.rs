//! The stand-in's listeners: one for each app, all under one root.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, answer};
use super::faults::{Faults, FaultsPatch};
use super::pki::{Pki, PkiError};
use super::query;
use crate::facts::ports::holder_of;
use crate::names::{AppId, InstanceId};
use crate::spec::{AgentAddr, Gateway};

/// What to stand in for.
pub struct Options {
    pub pki: Pki,
    pub machines: Vec<Machine>,
    /// A gateway that answers `/prpc/Info` there in plain HTTP, and what it says.
    pub gateway: Option<(SocketAddr, Gateway)>,
}

/// One machine: who it is, and where its agent listens.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Port 0 takes a free one.
    pub listen: AgentAddr,
    pub app_id: AppId,
    pub instance_id: Option<InstanceId>,
    /// At the start.
    pub faults: Faults,
}

/// Why the stand-in could not start.
#[derive(Debug, thiserror::Error)]
pub enum DevAgentError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot listen on {addr}: {why}")]
    Listen { addr: String, why: String },
}

/// A running stand-in. Dropping it ends it; [`DevAgent::stop`] also waits, and leaves no socket behind.
pub struct DevAgent {
    served: Vec<Arc<Served>>,
    gateway: Option<SocketAddr>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

/// What one listener knows.
struct Served {
    machine: Machine,
    pki: Arc<Pki>,
    faults: Mutex<Faults>,
    cancel: CancellationToken,
}

impl DevAgent {
    /// Binds every listener, then serves until it is stopped.
    pub async fn start(options: Options) -> Result<Self, DevAgentError> {
        let cancel = CancellationToken::new();
        let mut agent = Self {
            served: Vec::new(),
            gateway: None,
            tasks: JoinSet::new(),
            cancel: cancel.clone(),
        };
        let pki = Arc::new(options.pki);
        for mut machine in options.machines {
            let listener = Listener::bind(&machine.listen).await?;
            machine.listen = listener.addr();
            let served = Arc::new(Served {
                faults: Mutex::new(machine.faults.clone()),
                machine,
                pki: pki.clone(),
                cancel: cancel.clone(),
            });
            agent.served.push(served.clone());
            let routes = Router::new()
                .route("/dev/faults", get(show_faults).post(change_faults))
                .fallback(call)
                .with_state(served);
            agent.tasks.spawn(listener.serve(routes, cancel.clone()));
        }
        if let Some((addr, gateway)) = options.gateway {
            let listener = Listener::bind(&AgentAddr::Http(addr.into())).await?;
            if let Listener::Tcp(tcp) = &listener {
                agent.gateway = tcp.local_addr().ok();
            }
            let machine = agent.served.first().cloned();
            let routes = Router::new().route(
                "/prpc/Info",
                get(move || {
                    let unconfigured = machine.as_ref().is_some_and(|m| m.faults().gateway_unconfigured);
                    let answer = gateway_info(&gateway, unconfigured);
                    async { axum::Json(answer) }
                }),
            );
            agent.tasks.spawn(listener.serve(routes, cancel));
        }
        Ok(agent)
    }

    /// Where the agents listen, in the order of the machines.
    pub fn addrs(&self) -> Vec<AgentAddr> {
        self.served
            .iter()
            .map(|served| served.machine.listen.clone())
            .collect()
    }

    /// Where the gateway listens.
    pub fn gateway_addr(&self) -> Option<SocketAddr> {
        self.gateway
    }

    /// Changes what every machine does wrong.
    pub fn set_faults(&self, change: impl Fn(&mut Faults)) {
        self.served.iter().for_each(|served| change(&mut served.faults()));
    }

    /// Closes the listeners, ends the calls in flight, and removes the sockets.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Serves until `cancel`, then stops.
    pub async fn run_until(self, cancel: CancellationToken) {
        cancel.cancelled().await;
        self.stop().await;
    }
}

impl Served {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn show_faults(State(served): State<Arc<Served>>) -> Response {
    axum::Json(served.faults().clone()).into_response()
}

async fn change_faults(State(served): State<Arc<Served>>, body: Bytes) -> Response {
    match serde_json::from_slice::<FaultsPatch>(&body) {
        Ok(patch) => {
            let mut faults = served.faults();
            faults.patch(patch);
            axum::Json(faults.clone()).into_response()
        }
        Err(e) => refusal(&e.to_string()),
    }
}

async fn call(
    State(served): State<Arc<Served>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let faults = {
        let mut faults = served.faults();
        if faults.take_failure() {
            return refusal("Failed on demand");
        }
        faults.clone()
    };
    let name = uri.path().rsplit(['/', '.']).next().unwrap_or_default();
    tokio::select! {
        () = tokio::time::sleep(faults.delay(name)) => {}
        () = served.cancel.cancelled() => return refusal("The agent stops"),
    }
    let arguments = match arguments(&method, &uri, &headers, &body) {
        Ok(arguments) => arguments,
        Err(why) => return refusal(&why),
    };
    let answer: Answer = answer(name, arguments, &served.machine, &served.pki, &faults);
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err(why) => refusal(&why),
    }
}

/// The real agent takes any other content type for protobuf, which this one does not speak.
fn arguments(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<Value, String> {
    match *method {
        Method::GET => Ok(query::to_json(uri.query().unwrap_or_default())),
        Method::POST => {
            let kind = headers
                .get(header::CONTENT_TYPE)
                .and_then(|kind| kind.to_str().ok())
                .unwrap_or_default();
            if !kind.starts_with("application/json") {
                return Err("failed to decode Protobuf message: the dev-agent speaks JSON only".to_owned());
            }
            if body.is_empty() {
                return Ok(json!({}));
            }
            serde_json::from_slice(body).map_err(|e| format!("Invalid JSON: {e}"))
        }
        _ => Err(format!("Method not allowed: {method}")),
    }
}

fn refusal(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, axum::Json(json!({"error": why}))).into_response()
}

fn gateway_info(gateway: &Gateway, unconfigured: bool) -> Value {
    match gateway {
        Gateway::Domain { domain, port } if !unconfigured => {
            json!({"base_domain": domain.as_str(), "external_port": port, "app_address_ns_prefix": ""})
        }
        _ => json!({"base_domain": "", "external_port": 0}),
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    async fn bind(addr: &AgentAddr) -> Result<Self, DevAgentError> {
        let failed = |why: String| DevAgentError::Listen {
            addr: addr.to_string(),
            why,
        };
        match addr {
            AgentAddr::Http(at) => match TcpListener::bind(at.to_string()).await {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(e) => {
                    let holder = at.to_string().parse().ok().and_then(holder_of);
                    Err(failed(
                        holder.map_or(e.to_string(), |holder| format!("{e}, by {holder}")),
                    ))
                }
            },
            AgentAddr::Unix(path) => {
                clear_stale(path).await.map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(|e| failed(e.to_string()))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    fn addr(&self) -> AgentAddr {
        match self {
            Self::Unix(_, path) => AgentAddr::Unix(path.clone()),
            Self::Tcp(listener) => {
                let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
                AgentAddr::Http(listener.local_addr().unwrap_or(unknown).into())
            }
        }
    }

    async fn serve(self, routes: Router, cancel: CancellationToken) {
        let stop = cancel.cancelled_owned();
        let result = match self {
            Self::Tcp(listener) => axum::serve(listener, routes).with_graceful_shutdown(stop).await,
            Self::Unix(listener, path) => {
                let result = axum::serve(listener, routes).with_graceful_shutdown(stop).await;
                let _ = std::fs::remove_file(path);
                result
            }
        };
        if let Err(e) = result {
            tracing::error!(error = %e, "the dev-agent stopped listening");
        }
    }
}

/// Removes a socket that nobody listens on, and makes the folder.
async fn clear_stale(path: &Path) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Ok(about) if !about.file_type().is_socket() => {
            return Err("there is a file that is no socket".to_owned());
        }
        Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
            return Err("somebody listens there already".to_owned());
        }
        Ok(_) => std::fs::remove_file(path).map_err(|e| e.to_string())?,
        Err(_) => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), std::fs::create_dir_all)
        .map_err(|e| e.to_string())
}
