//! What the registry's tests have in common.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dstack_vpc::names::{AppId, NodeId, NodeType};
use dstack_vpc::registry::{Change, Listing, OpenError, Registry, RegistrySettings, open};
use dstack_vpc::spec::Store;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A folder for an embedded registry, and how it is opened.
pub struct Home {
    dir: PathBuf,
    pub settings: RegistrySettings,
    _owned: Option<TempDir>,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Self::at(dir.path());
        home._owned = Some(dir);
        home
    }

    /// Somebody else's folder.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _owned: None,
            settings: RegistrySettings {
                store: Store::Embedded,
                endpoints: Vec::new(),
                silence: Duration::from_secs(24 * 3600),
                forget_after: Duration::from_secs(30 * 24 * 3600),
            },
        }
    }

    pub fn patience(silence: Duration, forget_after: Duration) -> Self {
        let mut home = Self::new();
        (home.settings.silence, home.settings.forget_after) = (silence, forget_after);
        home
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub async fn try_open(&self) -> Result<Arc<dyn Registry>, OpenError> {
        open(&self.settings, &self.dir, CancellationToken::new()).await
    }

    pub async fn open(&self) -> Arc<dyn Registry> {
        self.try_open().await.unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, wait).await;
    done.unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub fn app(n: u8) -> AppId {
    AppId::from_bytes([n; 20])
}

pub fn id(text: &str) -> NodeId {
    text.parse().unwrap()
}

pub fn kind(text: &str) -> NodeType {
    text.parse().unwrap()
}

/// What a node says when it has joined.
pub fn announce(node_type: &str, hostname: &str) -> Change {
    Change {
        node_type: Some(kind(node_type)),
        ip: Some([100, 128, 0, 7].into()),
        hostname: Some(format!("{hostname}.dstack.internal").parse().unwrap()),
        ..Change::default()
    }
}

/// The ids of what was discovered.
pub fn names(listing: &Listing) -> Vec<String> {
    listing
        .nodes
        .iter()
        .map(|entry| entry.node.id.to_string())
        .collect()
}
