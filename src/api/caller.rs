//! Who calls: nginx says so, having verified the caller's certificate.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;

use super::Shared;
use super::error::ApiError;
use crate::names::AppId;

const APP_ID: HeaderName = HeaderName::from_static("x-dstack-app-id");

/// An app that may use this server and has not asked for too much.
pub(super) struct Caller(pub(super) AppId);

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let mut ids = parts.headers.get_all(APP_ID).iter();
        // Of two ids one was not set by nginx.
        let app: AppId = match (ids.next(), ids.next()) {
            (Some(id), None) => id.to_str().ok().and_then(|id| id.parse().ok()),
            _ => None,
        }
        .ok_or(ApiError::Unauthorized)?;
        if !shared.settings().allows(&app) {
            return Err(ApiError::Forbidden);
        }
        shared.limits.load().request(app)?;
        Ok(Self(app))
    }
}
