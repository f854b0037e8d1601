//! Headscale as this program uses it: one small client for its REST interface, and the keeper of what has to be there
//! before it can be used: the user `default` and an API key.
//!
//! Works with Headscale 0.26 to 0.29. Everything that differs between them is in `wire` and `command`.

mod client;
mod command;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keeper;
mod key_file;
mod secret;
mod settle;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::keeper::{Keeper, Session};
use crate::names::{NodeName, NodeType};

pub use self::error::HeadscaleError;
pub use self::secret::Secret;
pub use self::settle::Settled;
pub use self::wire::VpnNode;

/// How long a call waits for a Headscale that is restarting, or whose key is being replaced.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to reach the Headscale of this machine. Equal access means nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its command line, which makes API keys over its own socket.
    pub program: PathBuf,
    /// The configuration that it runs on, below `<state>/current`.
    pub config: PathBuf,
    /// `server.headscale_listen`; an unspecified address is reached on loopback.
    pub listen: SocketAddr,
    /// Where the API key is kept, 0600.
    pub key_file: PathBuf,
    /// `headscale.api_key_lifetime`
    pub key_lifetime: Duration,
}

/// The Headscale of this machine, and the owner of the task that keeps it usable.
pub struct Headscale {
    access: watch::Sender<Option<Access>>,
    session: watch::Sender<Option<Arc<Session>>>,
    trouble: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What a node is to be let in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinKey {
    pub lifetime: Duration,
    /// Whether more than one node may join with it.
    pub reusable: bool,
    /// Becomes a tag of the nodes that join with it.
    pub node_type: Option<NodeType>,
}

/// A key that was made for a node.
#[derive(Debug)]
pub struct MadeKey {
    /// The nodes that joined with it say so: [`VpnNode::join_key`].
    pub id: u64,
    pub secret: Secret,
}

impl Headscale {
    /// `None`: Headscale does not run here (yet).
    pub fn start(access: Option<Access>) -> Self {
        let cancel = CancellationToken::new();
        let access = watch::Sender::new(access);
        let session = watch::Sender::new(None);
        let trouble = watch::Sender::new(None);
        let receiver = trouble.subscribe();
        let keeper = Keeper::new(access.subscribe(), session.clone(), trouble, cancel.clone());
        Self {
            access,
            session,
            trouble: receiver,
            cancel,
            keeper: Mutex::new(Some(tokio::spawn(keeper.run()))),
        }
    }

    /// Goes on with other access; nothing happens when it is the same.
    pub fn update(&self, access: Option<Access>) {
        self.access.send_if_modified(|now| {
            let is_other = *now != access;
            *now = access;
            is_other
        });
    }

    /// Why it cannot be used now, as an operator should read it.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// A new key with which a node can join as one of the user `default`.
    ///
    /// Every call makes another. One whose answer was lost in a restart of Headscale is asked for again: the first
    /// lets nobody in, because nobody knows it.
    pub async fn join_key(&self, wanted: &JoinKey) -> Result<MadeKey, HeadscaleError> {
        self.call(|session| async move { session.client.create_join_key(session.user, wanted).await })
            .await
    }

    /// Every node that Headscale knows, also those that are away.
    pub async fn nodes(&self) -> Result<Vec<VpnNode>, HeadscaleError> {
        self.call(|session| async move { session.client.nodes().await })
            .await
    }

    /// Forgets a node: its address and name are free again, and it has to join anew. No error when it is not there.
    pub async fn delete_node(&self, id: u64) -> Result<(), HeadscaleError> {
        self.call(|session| async move { session.client.delete_node(id).await })
            .await
    }

    /// Gives a node another name in the VPN's DNS. Refused while another node has that name.
    pub async fn rename_node(&self, id: u64, name: &NodeName) -> Result<(), HeadscaleError> {
        self.call(|session| async move { session.client.rename_node(id, name).await })
            .await
    }

    /// Ends the task and waits for it; an API key that is just being made is stored first.
    pub async fn close(&self) {
        self.cancel.cancel();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper
            && let Err(e) = keeper.await
        {
            tracing::error!(error = %e, "the keeper of Headscale's API key ended badly");
        }
    }

    /// Makes a call as soon as there is a session. When the session turns out to be stale, the keeper looks after it
    /// and the call is made again, all within [`PATIENCE`].
    async fn call<T, F: Future<Output = Result<T, HeadscaleError>>>(
        &self,
        // Not an `AsyncFn`: of its futures nobody could say that they are `Send`.
        call: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, HeadscaleError> {
        if self.access.borrow().is_none() {
            return Err(HeadscaleError::NotHere);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while let Some(session) = self.session_before(deadline).await {
            match call(Arc::clone(&session)).await {
                Err(e) if e.is_passing() || (e.is_internal() && last.is_none()) => {
                    self.doubt(&session);
                    last = Some(e);
                }
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| self.unavailable()))
    }

    async fn session_before(&self, deadline: Instant) -> Option<Arc<Session>> {
        let mut session = self.session.subscribe();
        let found = tokio::select! {
            found = tokio::time::timeout_at(deadline, session.wait_for(Option::is_some)) => found,
            () = self.cancel.cancelled() => return None,
        };
        found.ok()?.ok()?.clone()
    }

    /// The keeper looks when the session is gone. One that was replaced meanwhile is not doubted.
    fn doubt(&self, doubted: &Arc<Session>) {
        self.session.send_if_modified(|session| {
            let is_it = session.as_ref().is_some_and(|it| Arc::ptr_eq(it, doubted));
            if is_it {
                *session = None;
            }
            is_it
        });
    }

    fn unavailable(&self) -> HeadscaleError {
        if self.cancel.is_cancelled() {
            return HeadscaleError::Closing;
        }
        let trouble = self.trouble.borrow().clone();
        HeadscaleError::NotReady(trouble.unwrap_or_else(|| "it is being looked after".to_owned()))
    }
}

impl Drop for Headscale {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
