//! `GET /api/discover/<type>`: who is there, at once or as soon as that changes.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use super::Shared;
use super::caller::Caller;
use super::error::{ApiError, ErrorBody};
use super::query::{self, Query};
use super::reply::json;
use crate::listen::Stopping;
use crate::names::{NodeType, NotA};
use crate::registry::{Entry, Listing};

/// The longest wait, so that the answer is there before `mesh.response_timeout` (60 s) is over.
const LONGEST: Duration = Duration::from_secs(55);

/// Its members are told with their port, which clients of etcd need.
const ETCD: &str = "etcd";
const ETCD_PORT: u16 = 2379;

#[derive(Serialize, ToSchema)]
struct Discovered<'a> {
    count: usize,
    /// What to hand to a call with `wait` as `index`.
    index: u64,
    node_type: &'a str,
    #[schema(inline)]
    nodes: Vec<Found<'a>>,
}

#[derive(Serialize, ToSchema)]
struct Found<'a> {
    hostname: &'a str,
    /// Of nodes of the type `etcd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hostname_with_port: Option<String>,
    /// Null: not known yet.
    #[schema(value_type = Option<String>, required = true)]
    tailscale_ip: Option<Ipv4Addr>,
    uuid: &'a str,
}

/// The nodes of a type that live and have a host name.
///
/// With `wait` and the `index` of the last answer it answers as soon as there is something new, or when the time is
/// over; with `wait` alone, as soon as there is a node. Of type `etcd` only the newest node counts.
#[utoipa::path(
    get,
    path = "/api/discover/{node_type}",
    params(
        ("node_type" = String, Path, description = "Letters, digits, `-`, `_`, `.`, at most 63."),
        ("wait" = Option<String>, Query, description = "Seconds, or `30s`; at most 55 s are waited."),
        ("index" = Option<u64>, Query, description = "`index` of the last answer."),
    ),
    responses(
        (status = 200, body = Discovered, description = "At least one node."),
        (status = 400, body = ErrorBody, description = "A parameter is wrong."),
        (status = 401, body = ErrorBody, description = "The caller has no app id."),
        (status = 403, body = ErrorBody, description = "The app is not allowed."),
        (status = 404, body = ErrorBody, description = "There is no such node."),
        (status = 429, body = ErrorBody, description = "Too many; `Retry-After` says when to come again."),
        (status = 503, body = ErrorBody, description = "The registry cannot be used at the moment."),
    ),
)]
pub(super) async fn discover(
    State(shared): State<Arc<Shared>>,
    Extension(stopping): Extension<Stopping>,
    _: Caller,
    node_type: Result<Path<String>, PathRejection>,
    query: Query,
) -> Result<Response, ApiError> {
    let Path(node_type) =
        node_type.map_err(|_| ApiError::invalid("node_type", "…", NotA::new("percent-encoded UTF-8")))?;
    let node_type: NodeType = node_type
        .parse()
        .map_err(|why| ApiError::invalid("node_type", &node_type, why))?;
    let wait = query.read("wait", query::duration)?;
    let index = query.read("index", query::number)?;
    let listing = match wait {
        Some(wait) => news(&shared, &stopping, &node_type, wait.min(LONGEST), index).await?,
        None => shared.opened().await?.registry.discover(&node_type),
    };
    if listing.nodes.is_empty() {
        // Who does not wait gets what the API's first implementation said.
        let waits = wait.is_some() || index.is_some();
        return Err(ApiError::NoNodes {
            node_type,
            index: waits.then_some(listing.index),
        });
    }
    let answer = Discovered {
        count: listing.nodes.len(),
        index: listing.index,
        node_type: node_type.as_str(),
        nodes: listing
            .nodes
            .iter()
            .filter_map(|entry| found(entry, &node_type))
            .collect(),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// The listing once it is another than that of `index`, or not empty where no index is known.
///
/// Whoever hangs up drops this future and with it all that was spent on the wait.
async fn news(
    shared: &Shared,
    stopping: &Stopping,
    node_type: &NodeType,
    wait: Duration,
    index: Option<u64>,
) -> Result<Listing, ApiError> {
    let deadline = Instant::now() + wait;
    let mut store = shared.store.clone();
    loop {
        store.mark_unchanged();
        let opened = shared.opened().await?;
        let listing = opened.registry.discover(node_type);
        let is_news = match index {
            Some(index) => index != listing.index,
            None => !listing.nodes.is_empty(),
        };
        if is_news {
            return Ok(listing);
        }
        tokio::select! {
            () = opened.registry.changed(node_type, listing.index) => {}
            // Another registry took its place.
            _ = store.changed() => {}
            () = sleep_until(deadline) => return Ok(listing),
            () = stopping.0.cancelled() => return Ok(listing),
        }
    }
}

fn found<'a>(entry: &'a Entry, node_type: &NodeType) -> Option<Found<'a>> {
    let hostname = entry.node.hostname.as_ref()?.as_str();
    let is_etcd = node_type.as_str() == ETCD;
    Some(Found {
        hostname,
        hostname_with_port: is_etcd.then(|| format!("{hostname}:{ETCD_PORT}")),
        tailscale_ip: entry.node.ip,
        uuid: entry.node.id.as_str(),
    })
}
