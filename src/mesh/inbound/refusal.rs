//! Why a peer's request does not reach a backend.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};

use super::caller::Stranger;
use crate::codes::Code;
use crate::mesh::hop::{Failure, request_id};
use crate::mesh::reply::{self, Body};
use crate::mesh::tally::{Decisions, Pen};
use crate::names::{AppId, BackendName};

/// The same statuses and codes as in the rendered nginx.conf.
#[derive(Debug, thiserror::Error)]
pub(in crate::mesh) enum Refusal {
    #[error("{0}")]
    Caller(Stranger),
    #[error("the app {0} may not call this backend; add it to the backend's allowed_apps")]
    NotAllowed(AppId),
    #[error("no backend has this Host")]
    NoBackend,
    #[error("this machine has no certificate any more that it can use")]
    NotServed,
    #[error(transparent)]
    Request(#[from] Failure),
}

impl Refusal {
    /// The stable name in metrics.
    pub(in crate::mesh) fn cause(&self) -> Code {
        match self {
            Self::Caller(stranger) => stranger.code(),
            Self::NotAllowed(_) => Code::NotAllowed,
            Self::NoBackend => Code::UnknownBackend,
            Self::NotServed => Code::NotServed,
            Self::Request(failure) => failure.code(),
        }
    }

    pub(super) fn reply(&self, id: &HeaderValue, grpc: bool) -> Response<Body> {
        // The last is what gRPC calls it (doc/statuscodes.md of the gRPC project).
        let (status, code, hop, grpc_status) = match self {
            Self::Caller(_) => (StatusCode::UNAUTHORIZED, Code::Unauthorized, "caller", 16),
            Self::NotAllowed(_) => (StatusCode::FORBIDDEN, Code::Forbidden, "caller", 7),
            Self::NoBackend => (StatusCode::MISDIRECTED_REQUEST, Code::NoBackend, "front", 12),
            Self::NotServed => (StatusCode::SERVICE_UNAVAILABLE, Code::NotServed, "front", 14),
            Self::Request(failure) if grpc => return failure.as_grpc(id),
            Self::Request(failure) => return failure.reply(Some(id)),
        };
        tracing::debug!(
            code = self.cause().name(),
            request_id = id.to_str().ok(),
            "{self}"
        );
        let words = serde_json::json!({
            "error": self.to_string(),
            "code": code.name(),
            "hop": hop,
            "request_id": id.to_str().ok(),
        });
        let mut answer = reply::json(status, &words);
        let headers = answer.headers_mut();
        headers.insert(request_id::NAME, id.clone());
        if grpc {
            headers.insert("grpc-status", grpc_status.into());
        }
        answer
    }
}

/// Counts what was decided, by backend.
pub(super) struct Ledger {
    pen: Pen,
    backends: HashMap<BackendName, Arc<Decisions>>,
    none: Arc<Decisions>,
}

impl Ledger {
    pub(super) fn new(pen: Pen) -> Self {
        Self {
            backends: HashMap::new(),
            none: pen.decisions("_none"),
            pen,
        }
    }

    /// `None`: the request is for no backend.
    pub(super) fn of(&mut self, backend: Option<&BackendName>) -> &Arc<Decisions> {
        match backend {
            None => &self.none,
            Some(name) if self.backends.contains_key(name) => &self.backends[name],
            Some(name) => {
                let decisions = self.pen.decisions(name.as_str());
                self.backends.entry(name.clone()).or_insert(decisions)
            }
        }
    }
}
