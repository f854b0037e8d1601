//! This machine's own certificate: fetched, validated, stored, renewed.
//!
//! A certificate is never replaced in place. Each has its own numbered folder, so the rendered nginx.conf names
//! exactly one of them, and a renewal is simply a new generation.

mod check;
mod fetch;
mod prune;
mod schedule;
mod store;

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::names::{AppId, InstanceId};

pub use check::{CheckError, Checked, check};
pub use fetch::{FetchError, fetch};
pub use prune::prune;
pub use schedule::renew_at;
pub(crate) use store::make_private_dir;
pub use store::{StoreError, Stored, load, store};

/// A certificate that passed every check, with its key. Lives in memory as `Arc<Identity>` and is published
/// over a `tokio::sync::watch`, so that a renewal is one assignment.
#[derive(Debug)]
pub struct Identity {
    /// `<state>/identity/<number>`.
    pub dir: PathBuf,
    pub key: PrivateKeyDer<'static>,
    /// Leaf first, then the App CA; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The KMS root: the one anchor that peers must chain to.
    pub root: CertificateDer<'static>,
    /// `None`: made without a KMS; nobody can call us or be called.
    pub app_id: Option<AppId>,
    pub instance_id: Option<InstanceId>,
    pub not_after: SystemTime,
}
