//! Every path, and the document that describes them.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::head;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::reply::{json, text};
use super::requests::{self, Requests};
use super::{Shared, discover, nodes, register};

/// The VPC API: nodes register, announce themselves and find each other.
///
/// Peers reach it through the mesh as Host `vpc-server`. Who calls is told by the caller's certificate, which has to
/// carry an app id; a server may be told to accept certain apps only. Every failure is answered with `error`, a
/// sentence.
#[derive(OpenApi)]
#[openapi(info(title = "dstack-vpc"))]
struct Document;

fn paths() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(register::register))
        .routes(routes!(nodes::update))
        .routes(routes!(discover::discover))
        .routes(routes!(nodes::list))
        .routes(routes!(ping))
        .routes(routes!(health))
        .routes(routes!(document))
}

/// What the API is, as OpenAPI 3.
pub fn openapi() -> utoipa::openapi::OpenApi {
    paths().into_openapi()
}

pub(super) fn router(shared: Arc<Shared>, requests: &Arc<Requests>) -> Router {
    let (router, _) = paths().split_for_parts();
    router
        // Else axum would answer it as it does GET, and a key would be made for nobody.
        .route("/api/register", head(async || ApiError::WrongMethod))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::WrongMethod)
        .layer(middleware::from_fn_with_state(
            Arc::clone(requests),
            requests::count,
        ))
        .with_state(shared)
}

/// Answers `pong`. Needs no app id.
#[utoipa::path(get, path = "/api/ping", responses((status = 200, body = String, description = "`pong`.", content_type = "text/plain")))]
async fn ping() -> Response {
    text("pong")
}

/// Answers `OK`. Needs no app id.
#[utoipa::path(get, path = "/health", responses((status = 200, body = String, description = "`OK`.", content_type = "text/plain")))]
async fn health() -> Response {
    text("OK")
}

/// This document. Needs no app id.
#[utoipa::path(get, path = "/api/openapi.json", responses((status = 200, body = Object, description = "OpenAPI 3.1.")))]
async fn document() -> Response {
    static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(openapi);
    json(StatusCode::OK, &*DOCUMENT)
}
