//! The status page: what the daemon knows of this machine, for a browser.
//!
//! One page, drawn here when somebody asks: no script, nothing that is fetched, nothing that can be asked for but to
//! look. What stands on it is what `dstack-vpc status`, `nodes`, `history` and the metrics say, so no secret does.

mod guard;
mod history;
mod html;
mod rates;
mod table;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::middleware;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::metrics::Gather;
use crate::names::DnsName;
use crate::paths::StateDir;
use history::Diffs;
use rates::Rates;
use view::View;

/// The key of `vpc.toml` that names the address.
pub(crate) const KEY: &str = "status.listen";

/// It is drawn once in this time, however many look.
const FRESH: Duration = Duration::from_secs(1);

/// Where the page is, and under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSettings {
    /// `status.listen`
    pub listen: SocketAddr,
    /// `status.names`
    pub names: Vec<DnsName>,
}

/// The page, wherever it is served.
#[derive(Clone)]
pub(crate) struct Page(Arc<Inner>);

struct Inner {
    gather: Gather,
    /// Beside IP addresses and localhost.
    names: ArcSwap<Vec<DnsName>>,
    drawing: Mutex<Drawing>,
}

/// What is kept from one look to the next.
struct Drawing {
    rates: Rates,
    diffs: Diffs,
    last: Option<(Instant, Arc<View>)>,
}

impl Page {
    pub(crate) fn new(gather: Gather, state: StateDir) -> Self {
        let drawing = Drawing {
            rates: Rates::since_now(&gather.mesh),
            diffs: Diffs::new(state),
            last: None,
        };
        Self(Arc::new(Inner {
            gather,
            names: ArcSwap::default(),
            drawing: Mutex::new(drawing),
        }))
    }

    /// Under these names it may be asked for, too.
    pub(crate) fn answer_to(&self, names: Vec<DnsName>) {
        self.0.names.store(Arc::new(names));
    }

    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/", get(page))
            .with_state(self.clone())
            .layer(middleware::from_fn_with_state(self.clone(), guard::guard))
    }

    async fn view(&self) -> Arc<View> {
        let mut drawing = self.0.drawing.lock().await;
        let fresh = drawing.last.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        if let Some((_, view)) = fresh {
            return Arc::clone(view);
        }
        let status = self.0.gather.status();
        let nodes = match self.0.gather.api() {
            Some(api) => Some(api.directory.nodes().await),
            None => None,
        };
        let diffs = drawing.diffs.of(&status.history).await;
        let mesh = drawing.rates.look(&self.0.gather.mesh);
        let view = Arc::new(View::new(&status, nodes, mesh, &diffs, Timestamp::now()));
        drawing.last = Some((Instant::now(), Arc::clone(&view)));
        view
    }
}

/// `/?still` does not draw itself anew: for reading, and for those whom a page that moves disturbs.
async fn page(State(page): State<Page>, uri: Uri) -> Response {
    let view = page.view().await;
    match html::page(&view, uri.query() == Some("still")) {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(%error, "the status page cannot be drawn");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
