//! What the server knows of nodes: who they are, where they are, and whether they still live.
//!
//! One trait, two stores: in the state directory, or in an etcd that several servers share. Both answer reads from
//! memory; a change is durable before it is answered.

mod embedded;
mod etcd;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod memory;
mod record;
mod view;
#[cfg(test)]
mod view_properties;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::names::{AppId, DnsName, NodeId, NodeType};
use crate::spec::Store;

/// `[registry]`: equal settings mean nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySettings {
    pub store: Store,
    /// The members of etcd.
    pub endpoints: Vec<Url>,
    /// Leaves discovery after this, unless the node named a time of its own. Zero: never.
    pub silence: Duration,
    /// Is forgotten after this. Zero: never.
    pub forget_after: Duration,
}

/// One node, as it announced itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// The app that created the record: nobody else may change it.
    pub owner: AppId,
    /// What it registered as; `node-<id>` when it gave no name.
    pub name: String,
    pub node_type: Option<NodeType>,
    /// In the VPN.
    pub ip: Option<Ipv4Addr>,
    /// In the VPN, e.g. `db-1.dstack.internal`.
    pub hostname: Option<DnsName>,
    pub registered: Timestamp,
    /// Since when it has its present type: of the nodes of type `etcd` the newest counts.
    pub typed: Timestamp,
    /// Leaves discovery after this much silence; `None`: after what the settings say.
    pub silence: Option<Duration>,
    /// Headscale's ids of the keys that were made for it alone, the newest last.
    #[serde(default)]
    pub join_keys: Vec<u64>,
}

/// A node with what is known of its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub node: Arc<Node>,
    /// When it last announced itself; after a restart of the server, the restart.
    pub last_seen: Timestamp,
    /// False: silent for too long, so it is not discovered.
    pub present: bool,
}

/// What a node says of itself; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub name: Option<String>,
    pub node_type: Option<NodeType>,
    pub ip: Option<Ipv4Addr>,
    pub hostname: Option<DnsName>,
    pub silence: Option<Duration>,
    /// A key was made for it.
    pub join_key: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Created,
    Updated,
}

/// The nodes of one type at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// To be handed to [`Registry::changed`]. It is a digest of ids, host names and addresses, so it is the same in
    /// every server and after a restart, and differs when one of them does. Fits into the 53 bits that JavaScript has
    /// for a number, and is never 0.
    pub index: u64,
    /// In the order of their ids.
    pub nodes: Vec<Entry>,
}

/// How many nodes there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Not forgotten.
    pub nodes: usize,
    /// Of these, how many announced themselves recently enough.
    pub present: usize,
}

/// Why the registry did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("node {0} belongs to another app")]
    NotYours(NodeId),
    /// The store refuses or cannot be reached; nothing was changed, or it is not known to be.
    #[error("{0}")]
    Unavailable(String),
}

/// Where nodes are kept. Reads are answered from memory; writes are durable once they return.
pub trait Registry: Send + Sync {
    /// Creates or changes a record and notes that the node lives. When nothing changes, nothing is written.
    fn put(&self, owner: AppId, id: NodeId, change: Change) -> BoxFuture<'_, Result<Stored, RegistryError>>;

    /// The nodes of one type that are present and have a host name. Of type `etcd` only the newest.
    fn discover(&self, node_type: &NodeType) -> Listing;

    /// Every node that is not forgotten, in the order of their ids.
    fn nodes(&self) -> Vec<Entry>;

    fn census(&self) -> Census;

    fn node(&self, id: &NodeId) -> Option<Entry>;

    /// Waits until [`Registry::discover`] has another index than `index`. Safe to drop at any moment.
    fn changed<'a>(&'a self, node_type: &'a NodeType, index: u64) -> BoxFuture<'a, ()>;

    /// The secret that all servers of this registry share: the one that is stored, else `candidate`, which then is.
    fn shared_secret(&self, candidate: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, RegistryError>>;

    /// Why it does not work at the moment, as an operator should read it.
    fn trouble(&self) -> Option<String>;

    /// Ends what runs in the background, after what was accepted is durable. Later writes are refused.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Why there is no registry. Each can be tried again, when what the message says has been done.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// Truncated, overwritten, or never a registry. It is left as it is.
    #[error(
        "{} is not a registry that can be read ({why}). Put a backup in its place; \
         or move it away together with {}, and the registry starts empty: nodes are back when they announce themselves",
        path.display(), marker.display()
    )]
    Damaged {
        path: PathBuf,
        marker: PathBuf,
        why: String,
    },
    #[error(
        "{} is gone, though it was here before. Put it or a backup of it in its place; \
         or remove {}, and the registry starts empty: nodes are back when they announce themselves",
        path.display(), marker.display()
    )]
    Missing { path: PathBuf, marker: PathBuf },
    #[error("{} is in use by another process: is a second daemon running on this state directory?", path.display())]
    InUse { path: PathBuf },
    #[error("{} was written by a newer version (format {format}): run that version, or restore a backup", path.display())]
    Newer { path: PathBuf, format: String },
    /// None of etcd's members answered as it should, each with its own reason.
    #[error("{0}. Does etcd run, and is `registry.endpoints` where it runs?")]
    Etcd(String),
}

/// Opens the registry that `settings` name; `dir` is `<state>/registry`. What runs in the background ends with
/// `cancel`, as it does with [`Registry::close`].
pub async fn open(
    settings: &RegistrySettings,
    dir: &Path,
    cancel: CancellationToken,
) -> Result<Arc<dyn Registry>, OpenError> {
    match settings.store {
        Store::Embedded => Ok(Arc::new(embedded::Embedded::open(settings, dir, cancel).await?)),
        Store::Etcd => {
            let opening = etcd::Etcd::open(settings, cancel.clone());
            let opened = cancel.run_until_cancelled(opening).await;
            let given_up = || Err(OpenError::Etcd("nobody waits for etcd any more".to_owned()));
            Ok(Arc::new(opened.unwrap_or_else(given_up)?))
        }
    }
}
