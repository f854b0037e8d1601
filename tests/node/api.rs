//! The VPC API as a node sees it, with keys of a real Headscale: it can be down, refuse, and hand out bad keys.
#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use dstack_vpc::headscale::{Access, Headscale, JoinKey};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const SHARED_KEY: &str = "c2VjcmV0IG9mIGFsbCBub2RlcyBvZiB0aGlzIHRlc3Q=";

type Parameters = BTreeMap<String, String>;

/// Ends when dropped.
pub struct Api {
    pub addr: SocketAddr,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

struct Inner {
    headscale: Headscale,
    behaviour: Mutex<Behaviour>,
}

#[derive(Default)]
struct Behaviour {
    down: bool,
    disowns: bool,
    server_url: String,
    /// Handed out before good ones.
    bad_keys: VecDeque<String>,
    /// All that were handed out.
    keys: Vec<String>,
    registrations: Vec<Parameters>,
    announcements: Vec<Parameters>,
    /// Which app the requests were for.
    targets: Vec<String>,
}

impl Api {
    pub async fn start(headscale: Access, server_url: String) -> Self {
        let inner = Arc::new(Inner {
            headscale: Headscale::start(Some(headscale)),
            behaviour: Mutex::new(Behaviour {
                server_url,
                ..Behaviour::default()
            }),
        });
        let router = Router::new()
            .route("/api/register", get(register))
            .route("/api/nodes/update", post(update))
            .with_state(inner.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { addr, inner, task }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Behaviour) -> T) -> T {
        act(&mut self.inner.behaviour.lock().expect("no panic"))
    }

    /// Everything is answered as by a mesh that cannot reach its peer.
    pub fn set_down(&self, down: bool) {
        self.with(|it| it.down = down);
    }

    /// It says that Headscale does not know the node.
    pub fn set_disowns(&self, disowns: bool) {
        self.with(|it| it.disowns = disowns);
    }

    pub fn set_server_url(&self, url: String) {
        self.with(|it| it.server_url = url);
    }

    pub fn hand_out(&self, bad_key: &str) {
        self.with(|it| it.bad_keys.push_back(bad_key.to_owned()));
    }

    pub fn keys(&self) -> Vec<String> {
        self.with(|it| it.keys.clone())
    }

    pub fn registrations(&self) -> Vec<Parameters> {
        self.with(|it| it.registrations.clone())
    }

    pub fn announcements(&self) -> Vec<Parameters> {
        self.with(|it| it.announcements.clone())
    }

    pub fn targets(&self) -> Vec<String> {
        self.with(|it| it.targets.clone())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the mesh checks, and what it says when the server is gone.
fn arrive(inner: &Inner, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut behaviour = inner.behaviour.lock().expect("no panic");
    let (Some("vpc-server"), Some(app)) = (header("host"), header("x-dstack-target-app")) else {
        let response = (StatusCode::BAD_REQUEST, "another host or no target").into_response();
        return Err(Box::new(response));
    };
    behaviour.targets.push(app.to_owned());
    match behaviour.down {
        true => {
            let body = json!({"error": "the gateway closed the connection", "code": "unreachable"});
            Err(Box::new((StatusCode::BAD_GATEWAY, Json(body)).into_response()))
        }
        false => Ok(()),
    }
}

async fn register(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Query(query): Query<Parameters>,
) -> Response {
    if let Err(response) = arrive(&inner, &headers) {
        return *response;
    }
    let bad = inner.behaviour.lock().expect("no panic").bad_keys.pop_front();
    let key = match bad {
        Some(key) => key,
        None => {
            let wanted = JoinKey {
                lifetime: Duration::from_secs(600),
                reusable: false,
                node_type: None,
            };
            let made = inner.headscale.join_key(&wanted).await.expect("a key");
            made.secret.expose().to_owned()
        }
    };
    let mut behaviour = inner.behaviour.lock().expect("no panic");
    behaviour.registrations.push(query);
    behaviour.keys.push(key.clone());
    let server_url = &behaviour.server_url;
    let body = json!({"pre_auth_key": key, "shared_key": SHARED_KEY, "server_url": server_url});
    Json(body).into_response()
}

async fn update(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Query(query): Query<Parameters>,
) -> Response {
    if let Err(response) = arrive(&inner, &headers) {
        return *response;
    }
    let mut behaviour = inner.behaviour.lock().expect("no panic");
    behaviour.announcements.push(query);
    let body = match behaviour.disowns {
        true => json!({"status": "updated", "in_vpn": false}),
        false => json!({"status": "updated"}),
    };
    Json(body).into_response()
}
