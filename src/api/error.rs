//! Why a request was not done: a public sentence for the caller, and a private cause for the log.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::reply::json;
use crate::names::{NodeId, NodeType, NotA};
use crate::registry::RegistryError;

/// What callers see of a failure.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// A sentence.
    error: String,
    /// With `wait`: what to hand to the next call as `index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    index: Option<u64>,
}

/// The words of the first five are those that clients know from the API's first implementation.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("Unauthorized")]
    Unauthorized,
    #[error("Forbidden")]
    Forbidden,
    #[error("Missing required parameters")]
    NoInstance,
    #[error("uuid parameter is required")]
    NoUuid,
    #[error("No {node_type} nodes found")]
    NoNodes { node_type: NodeType, index: Option<u64> },
    #[error("Failed to generate pre-auth key")]
    NoKey { cause: String },
    #[error("node {0} belongs to another app")]
    NotYours(NodeId),
    #[error("{name} is {given:?}; {why}")]
    Invalid {
        name: String,
        /// Shortened.
        given: String,
        why: NotA,
    },
    #[error("{0} is given more than once; give it once")]
    Repeated(String),
    #[error("{what}: {most} an hour are allowed; try again in {} s", retry.as_secs())]
    TooMany {
        what: &'static str,
        most: u32,
        /// Whole seconds.
        retry: Duration,
    },
    #[error("{public}; try again later")]
    Unavailable { public: &'static str, cause: String },
    #[error("there is nothing at this path; /api/openapi.json says what there is")]
    NotFound,
    #[error("this path does not know this method; /api/openapi.json says which it knows")]
    WrongMethod,
    #[error("an error of this server; its log says more")]
    Internal,
}

impl ApiError {
    /// A parameter that is not what it should be.
    pub(super) fn invalid(name: &str, given: &str, why: NotA) -> Self {
        const LONGEST: usize = 80;
        let short = |text: &str| match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        Self::Invalid {
            name: short(name),
            given: short(given),
            why,
        }
    }

    pub(super) fn unavailable(public: &'static str, cause: impl ToString) -> Self {
        Self::Unavailable {
            public,
            cause: cause.to_string(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::NotYours(_) => StatusCode::FORBIDDEN,
            Self::NoInstance | Self::NoUuid | Self::Invalid { .. } | Self::Repeated(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::NoNodes { .. } | Self::NotFound => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NoKey { .. } | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooMany { retry, .. } => Some(retry.as_secs()),
            Self::Unavailable { .. } => Some(5),
            _ => None,
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::NotYours(id) => Self::NotYours(id),
            RegistryError::Unavailable(cause) => {
                Self::unavailable("the registry cannot be used at the moment", cause)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            Self::NoKey { cause } => tracing::warn!(cause, "{self}"),
            // Whose trouble it is has said so once; this comes again with every request.
            Self::Unavailable { cause, .. } => tracing::debug!(cause, "{self}"),
            _ => {}
        }
        let index = match &self {
            Self::NoNodes { index, .. } => *index,
            _ => None,
        };
        let body = ErrorBody {
            error: self.to_string(),
            index,
        };
        let mut response = json(self.status(), &body);
        if let Some(seconds) = self.retry_after() {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
