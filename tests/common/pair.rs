//! Two machines of different apps: the first calls, the second serves.

use std::sync::{Arc, Weak};

use hyper::Request;
use hyper::body::Body;
use tokio::sync::Mutex;

use super::agent::Agent;
use super::backend::Backend;
use super::http::{self, Reply, With};
use super::machine::{Machine, Plan};
use super::ports::Port;
use super::{CLIENT_APP, SERVER_APP};

/// The Host that reaches [`Pair::reports`].
pub const REPORTS: &str = "reports.local";
/// The Host of a backend that only [`SERVER_APP`] itself may call.
pub const PRIVATE: &str = "private.local";
/// The Host of a backend whose upstream nobody listens on.
pub const DOWN: &str = "down.local";

/// Client and server, and what stands behind the server.
pub struct Pair {
    pub client: Machine,
    pub server: Machine,
    /// Every Host that is not named.
    pub default: Backend,
    pub reports: Backend,
    pub agent: Agent,
    _nowhere: Port,
}

impl Pair {
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// `change` may edit the plans of client and server before they start.
    pub async fn start_with(change: impl FnOnce(&mut Plan, &mut Plan)) -> Self {
        let agent = Agent::start().await;
        let default = Backend::start("default").await;
        let reports = Backend::start("reports").await;
        let nowhere = Port::reserve();
        let backends = [
            ("default", "_", default.addr()),
            ("reports", REPORTS, reports.addr()),
            ("down", DOWN, nowhere.addr()),
            ("private", PRIVATE, default.addr()),
        ];
        // The server calls nobody: its gateway is a port where nothing listens.
        let mut server = Plan::new(&agent.socket(SERVER_APP), nowhere.addr(), &backends);
        server.toml += &format!("allowed_apps = [\"{SERVER_APP}\"]\n");
        let mut client = Plan::new(&agent.socket(CLIENT_APP), server.ports.https.addr(), &[]);
        change(&mut client, &mut server);
        let (client, server) = tokio::join!(client.start(), server.start());
        Self {
            client,
            server,
            default,
            reports,
            agent,
            _nowhere: nowhere,
        }
    }

    /// The pair that tests share which change nothing. It ends with the last test that holds it.
    pub async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Pair>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        match shared.upgrade() {
            Some(pair) => pair,
            None => {
                let pair = Arc::new(Self::start().await);
                *shared = Arc::downgrade(&pair);
                pair
            }
        }
    }

    /// Calls the server's app through everything: nginx, proxy, mTLS, nginx, auth, backend.
    pub async fn call<B>(&self, request: Request<B>) -> Reply
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<http::Error>,
    {
        self.client
            .call(request.to_app(SERVER_APP))
            .await
            .expect("an answer")
    }
}
