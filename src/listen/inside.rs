//! What is served, for those who ask from within this process: without a connection, and otherwise alike.

use std::sync::Arc;

use axum::response::Response;
use axum::{BoxError, Router};
use bytes::Bytes;
use hyper::Request;
use hyper::body::Body;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{DRAIN, Site, Stopping, answer};
use crate::names::AppId;

/// The app that calls, proven by its certificate; goes with each request that came this way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verified(pub(crate) AppId);

/// The way in, until it is closed.
#[derive(Clone)]
pub struct Inside {
    router: Router,
    /// Requests at once, as many as there may be connections; more wait.
    room: Arc<Semaphore>,
    /// Take nothing more; those who wait for news are answered.
    stop: CancellationToken,
    /// Give up what is still there.
    cut: CancellationToken,
    requests: TaskTracker,
}

impl Inside {
    pub(crate) fn new(site: &Site) -> Self {
        Self {
            router: site.router.clone(),
            room: Arc::new(Semaphore::new(site.most)),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            requests: TaskTracker::new(),
        }
    }

    /// `None`: nobody is there any more.
    pub(crate) async fn answer<B>(&self, caller: AppId, mut request: Request<B>) -> Option<Response>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let _open = self.requests.token();
        // Never closed, so this never fails.
        let _place = self.room.acquire().await.ok()?;
        if self.stop.is_cancelled() {
            return None;
        }
        request.extensions_mut().insert(Verified(caller));
        let stopping = Stopping(self.stop.clone());
        tokio::select! {
            answer = answer(self.router.clone(), stopping, request) => Some(answer),
            () = self.cut.cancelled() => None,
        }
    }

    /// Lets what was begun end.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.requests.close();
        if timeout(DRAIN, self.requests.wait()).await.is_err() {
            self.cut.cancel();
            self.requests.wait().await;
        }
    }
}
