//! How many requests there were, by route and status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

/// Routes and statuses are few, so this stays small whatever is asked.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(String, u16), u64>>);

impl Requests {
    /// By the pattern of the path, and the status.
    pub(crate) fn read(&self) -> BTreeMap<(String, u16), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A layer: counts a request when it is answered.
pub(super) async fn count(
    State(requests): State<Arc<Requests>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let route = path.as_ref().map_or("other", MatchedPath::as_str).to_owned();
    let mut all = requests.0.lock().unwrap_or_else(PoisonError::into_inner);
    *all.entry((route, response.status().as_u16())).or_default() += 1;
    response
}
