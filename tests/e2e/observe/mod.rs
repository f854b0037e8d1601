//! What can be seen of a machine from outside: its metrics, its access log, its status page, what a
//! person at a terminal sees, and one id for a request at every hop.

mod access_log;
mod browser;
mod ids;
mod metrics;
mod page;
mod scrape;
mod terminal;

use crate::common::agent::Agent;
use crate::common::backend::Backend;
use crate::common::http::{self, Reply};
use crate::common::machine::{Machine, Plan};
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, OTHER_APP};
use hyper::Request;
use hyper::body::Body;

/// A machine that calls itself: what goes out comes in again, so both sides are counted in one place.
struct Alone {
    machine: Machine,
    agent: Agent,
    backend: Backend,
    metrics: Port,
    _down: Port,
}

/// The Host of a backend that only another app may call.
const PRIVATE: &str = "private.local";
/// The Host of a backend whose upstream nobody listens on.
const DOWN: &str = "down.local";

impl Alone {
    async fn start(change: impl FnOnce(&mut Plan)) -> Self {
        let (agent, backend) = (Agent::start().await, Backend::start("default").await);
        let (metrics, down) = (Port::reserve(), Port::reserve());
        let backends = [
            ("default", "_", backend.addr()),
            ("down", DOWN, down.addr()),
            ("private", PRIVATE, backend.addr()),
        ];
        let gateway = "127.0.0.1:9".parse().expect("an address");
        let mut plan = Plan::new(&agent.socket(CLIENT_APP), gateway, &backends);
        plan.toml += &format!("allowed_apps = [\"{OTHER_APP}\"]\n");
        let itself = plan.ports.https.to_string();
        plan.toml = plan.toml.replace(&gateway.to_string(), &itself);
        plan.toml += &format!("\n[metrics]\nlisten = \"{metrics}\"\n");
        change(&mut plan);
        Self {
            machine: plan.start().await,
            agent,
            backend,
            metrics,
            _down: down,
        }
    }

    /// Sends a request to the proxy itself, on a connection of its own.
    async fn proxy<B>(&self, request: Request<B>) -> Reply
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<http::Error>,
    {
        let addr = self.machine.ports.client.addr();
        http::send(addr, request).await.expect("an answer")
    }
}
