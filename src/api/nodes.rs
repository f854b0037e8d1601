//! `/api/nodes`: what nodes say of themselves, and all of them at once.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::caller::Caller;
use super::error::{ApiError, ErrorBody};
use super::query::{self, Query};
use super::reply::json;
use super::settle;
use crate::names::{NodeId, NodeName};
use crate::registry::{Change, Entry, Stored};

#[derive(Serialize, ToSchema)]
struct Updated {
    #[schema(value_type = String, pattern = "^(created|updated)$")]
    status: &'static str,
    /// Only ever false: Headscale has no node with this address, so the node has to register and log in anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    in_vpn: Option<bool>,
}

/// Tells where a node is and what it is; also its sign of life.
///
/// Empty parameters leave a field as it is. A node that is not known is created, for the calling app.
#[utoipa::path(
    post,
    path = "/api/nodes/update",
    params(
        ("uuid" = String, Query, description = "The node's id, as it registered: its instance id."),
        ("node_type" = Option<String>, Query, description = "What others discover it as; letters, digits, `-`, `_`, `.`, at most 63."),
        ("tailscale_ip" = Option<String>, Query, description = "Its IPv4 address in the VPN."),
        ("hostname" = Option<String>, Query, description = "Its DNS name in the VPN. Without one it is not discovered."),
        ("name" = Option<String>, Query, description = "One DNS label."),
        ("silence" = Option<String>, Query, description = "Seconds, or `5m`: silent for longer, it is no longer discovered."),
    ),
    responses(
        (status = 200, body = Updated, description = "The record stands."),
        (status = 400, body = ErrorBody, description = "A parameter is missing or wrong."),
        (status = 401, body = ErrorBody, description = "The caller has no app id."),
        (status = 403, body = ErrorBody, description = "The app is not allowed, or the node is another app's."),
        (status = 429, body = ErrorBody, description = "Too many; `Retry-After` says when to come again."),
        (status = 503, body = ErrorBody, description = "The registry cannot be used at the moment."),
    ),
)]
pub(super) async fn update(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let id: NodeId = query.get("uuid")?.ok_or(ApiError::NoUuid)?;
    let name: Option<NodeName> = query.get("name")?;
    let mut change = Change {
        name: name.map(|name| name.to_string()),
        node_type: query.get("node_type")?,
        ip: query.read("tailscale_ip", query::address(shared.settings().prefix))?,
        hostname: query.read("hostname", query::hostname)?,
        silence: query.read("silence", query::duration)?,
        join_key: None,
    };
    if change.name.is_none() && shared.opened().await?.registry.node(&id).is_none() {
        change.name = Some(id.to_string());
    }
    let status = match shared.put(caller.0, &id, &change).await? {
        Stored::Created => "created",
        Stored::Updated => "updated",
    };
    settle::hand_in(&shared, &id);
    let in_vpn = match change.ip {
        Some(ip) => shared.knows(ip).await.filter(|knows| !knows),
        None => None,
    };
    Ok(json(StatusCode::OK, &Updated { status, in_vpn }))
}

#[derive(Serialize, ToSchema)]
struct Nodes<'a> {
    count: usize,
    #[schema(inline)]
    nodes: Vec<Node<'a>>,
}

#[derive(Serialize, ToSchema)]
struct Node<'a> {
    uuid: &'a str,
    name: &'a str,
    /// Empty: not announced.
    node_type: &'a str,
    /// Null: not known yet.
    #[schema(value_type = Option<String>, required = true)]
    tailscale_ip: Option<Ipv4Addr>,
    /// Null: not known yet.
    #[schema(required = true)]
    actual_hostname: Option<&'a str>,
}

/// Every node that is known.
#[utoipa::path(
    get,
    path = "/api/nodes",
    responses(
        (status = 200, body = Nodes, description = "Those that are silent, too."),
        (status = 401, body = ErrorBody, description = "The caller has no app id."),
        (status = 403, body = ErrorBody, description = "The app is not allowed."),
        (status = 429, body = ErrorBody, description = "Too many; `Retry-After` says when to come again."),
        (status = 503, body = ErrorBody, description = "The registry cannot be used at the moment."),
    ),
)]
pub(super) async fn list(State(shared): State<Arc<Shared>>, _: Caller) -> Result<Response, ApiError> {
    let opened = shared.opened().await?;
    // A million nodes take a second, and one thread does everything of the daemon but the mesh.
    tokio::task::spawn_blocking(move || listing(&opened.registry.nodes()))
        .await
        .map_err(|_| ApiError::Internal)
}

fn listing(entries: &[Entry]) -> Response {
    let nodes: Vec<_> = entries
        .iter()
        .map(|entry| Node {
            uuid: entry.node.id.as_str(),
            name: &entry.node.name,
            node_type: entry.node.node_type.as_ref().map_or("", |t| t.as_str()),
            tailscale_ip: entry.node.ip,
            actual_hostname: entry.node.hostname.as_ref().map(|name| name.as_str()),
        })
        .collect();
    let answer = Nodes {
        count: nodes.len(),
        nodes,
    };
    json(StatusCode::OK, &answer)
}
