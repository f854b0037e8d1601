//! Who calls: the front says so, having verified the caller's certificate.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use super::Shared;
use super::error::ApiError;
use crate::listen::Verified;
use crate::names::AppId;

const APP_ID: HeaderName = HeaderName::from_static("x-dstack-app-id");

/// An app that may use this server and has not asked for too much.
pub(super) struct Caller(pub(super) AppId);

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let app = match parts.extensions.get::<Verified>() {
            Some(Verified(app)) => Some(*app),
            None => named(&parts.headers),
        }
        .ok_or(ApiError::Unauthorized)?;
        if !shared.settings().allows(&app) {
            return Err(ApiError::Forbidden);
        }
        shared.limits.load().request(app)?;
        Ok(Self(app))
    }
}

/// Whom nginx names.
fn named(headers: &HeaderMap) -> Option<AppId> {
    let mut ids = headers.get_all(APP_ID).iter();
    match (ids.next(), ids.next()) {
        (Some(id), None) => id.to_str().ok()?.parse().ok(),
        // Of two ids one was not set by nginx.
        _ => None,
    }
}
