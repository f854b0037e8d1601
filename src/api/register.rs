//! `GET /api/register`: what a node needs to join the VPN.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::Shared;
use super::caller::Caller;
use super::error::{ApiError, ErrorBody};
use super::query::Query;
use super::reply::json;
use crate::headscale::{HeadscaleError, JoinKey, MadeKey};
use crate::names::{NodeId, NodeName};
use crate::registry::Change;

/// Headscale hashes each key for a tenth of a second or more: asked for more at once, it answers none of them in time.
pub(super) const KEYS_AT_ONCE: usize = 4;
/// With the ten seconds that Headscale may take, below `mesh.response_timeout` (60 s).
const LONGEST_QUEUE: Duration = Duration::from_secs(40);

/// What a node needs to join the VPN.
#[derive(Serialize, ToSchema)]
struct Registered<'a> {
    /// Lets one node into the VPN, for as long as `server.join_key_lifetime` says.
    pre_auth_key: &'a str,
    /// 64 bytes in base64, the same for every node of the VPN.
    shared_key: &'a str,
    /// Headscale's public URL, the login server.
    server_url: &'a str,
}

/// Registers a node and hands out what it needs to join.
///
/// Each call makes another key. What is already known of the node stays.
#[utoipa::path(
    get,
    path = "/api/register",
    params(
        ("instance_id" = String, Query, description = "The node's id: letters, digits, `-`, `_`, `.`, at most 64."),
        ("node_name" = Option<String>, Query, description = "One DNS label; `node-<instance_id>` without it."),
        ("node_type" = Option<String>, Query, description = "Letters, digits, `-`, `_`, `.`, at most 63."),
    ),
    responses(
        (status = 200, body = Registered, description = "What `tailscale up` needs."),
        (status = 400, body = ErrorBody, description = "A parameter is missing or wrong."),
        (status = 401, body = ErrorBody, description = "The caller has no app id."),
        (status = 403, body = ErrorBody, description = "The app is not allowed, or the node is another app's."),
        (status = 429, body = ErrorBody, description = "Too many; `Retry-After` says when to come again."),
        (status = 500, body = ErrorBody, description = "Headscale made no key."),
        (status = 503, body = ErrorBody, description = "The registry or Headscale cannot be used at the moment."),
    ),
)]
pub(super) async fn register(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let id: NodeId = query.get("instance_id")?.ok_or(ApiError::NoInstance)?;
    let name: Option<NodeName> = query.get("node_name")?;
    let change = Change {
        name: name.map(|name| name.to_string()),
        node_type: query.get("node_type")?,
        ..Change::default()
    };
    shared.limits.load().registration(caller.0)?;
    let settings = shared.settings();
    let server_url = settings.server_url.clone().map_err(|cause| {
        ApiError::unavailable(
            "this server does not know its own address in the network yet",
            cause,
        )
    })?;
    let opened = shared.opened().await?;
    let shared_key = opened
        .shared_key
        .as_ref()
        .map_err(|cause| ApiError::unavailable("this server has no shared key at the moment", cause))?;
    // First the record: a node of another app gets no key.
    let stored = shared.put(caller.0, &id, &change).await?;
    let node_type = opened
        .registry
        .node(&id)
        .and_then(|entry| entry.node.node_type.clone());
    let wanted = JoinKey {
        lifetime: settings.join_key_lifetime,
        reusable: settings.join_key_reusable,
        node_type,
    };
    let key = make_key(&shared, &wanted).await?;
    if !wanted.reusable {
        // Whoever joins with it is this node: that tells its former records with Headscale from other machines'.
        let known = Change {
            join_key: Some(key.id),
            ..Change::default()
        };
        shared.put(caller.0, &id, &known).await?;
    }
    tracing::info!(app = %caller.0, node = %id, ?stored, "a node registered");
    let answer = Registered {
        pre_auth_key: key.secret.expose(),
        shared_key: shared_key.as_str(),
        server_url: &server_url,
    };
    Ok(json(StatusCode::OK, &answer))
}

/// Waits for its turn, and then for Headscale.
async fn make_key(shared: &Shared, wanted: &JoinKey) -> Result<MadeKey, ApiError> {
    let Ok(Ok(_turn)) = timeout(LONGEST_QUEUE, shared.key_makers.acquire()).await else {
        return Err(ApiError::unavailable(
            "Failed to generate pre-auth key: too many nodes register at once",
            "the others before it took too long",
        ));
    };
    shared
        .headscale
        .join_key(wanted)
        .await
        .map_err(|error| match error {
            HeadscaleError::NotHere | HeadscaleError::NotReady(_) => ApiError::unavailable(
                "Failed to generate pre-auth key: Headscale cannot be used at the moment",
                error,
            ),
            other => ApiError::NoKey {
                cause: other.to_string(),
            },
        })
}
