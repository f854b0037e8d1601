//! `/dstack-vpc/servers/<id>`: who listens to the nodes.
//!
//! Nodes that nobody listened to were not silent. The first server that is back after a while without any gives all
//! nodes their time again, as a restart of the embedded registry does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{Client, EtcdError};
use super::wire::{Keys, Then, Txn};
use super::{SERVERS, Shared};

/// How often a server says that it is there, which is also the sign of life of every server's watch.
pub(super) const PULSE: Duration = Duration::from_secs(5);
/// Without a pulse a server counts as gone after this, in seconds.
const TTL: u64 = 30;
/// How long a server that ends tries to say so.
const GOODBYE: Duration = Duration::from_secs(2);

/// This server among the others.
pub(super) struct Server {
    key: String,
    lease: u64,
    /// Nobody else was there when it came.
    pub(super) was_alone: bool,
}

impl Server {
    pub(super) async fn join(client: &Client) -> Result<Self, EtcdError> {
        let mut server = Self {
            key: format!("{SERVERS}{:016x}", fastrand::u64(..)),
            lease: 0,
            was_alone: true,
        };
        server.enter(client).await?;
        Ok(server)
    }

    async fn enter(&mut self, client: &Client) -> Result<(), EtcdError> {
        let mut alone = true;
        let others = Keys::below(SERVERS);
        client
            .range(&others, 0, true, |kv| alone &= kv.key == self.key)
            .await?;
        self.lease = client.grant(TTL).await?;
        self.was_alone = alone;
        self.pulse(client).await
    }

    async fn pulse(&self, client: &Client) -> Result<(), EtcdError> {
        let put = Then::Put {
            key: self.key.clone(),
            value: Vec::new(),
            lease: self.lease,
        };
        let txn = Txn {
            then: vec![put],
            ..Txn::default()
        };
        client.txn(&txn).await.map(drop)
    }

    /// Says again and again that this server is there, until `cancel`.
    pub(super) async fn stay(mut self, shared: Arc<Shared>, tasks: TaskTracker, cancel: CancellationToken) {
        let beating = async {
            loop {
                sleep(PULSE).await;
                let client = &shared.client;
                let kept = match client.keep(self.lease).await {
                    Ok(true) => self.pulse(client).await.map(|()| false),
                    Ok(false) => self.enter(client).await.map(|()| self.was_alone),
                    Err(error) => Err(error),
                };
                if let Ok(true) = shared.noting(kept) {
                    let tell = Arc::clone(&shared).tell(shared.give_time());
                    tasks.spawn(cancel.clone().run_until_cancelled_owned(tell));
                }
            }
        };
        cancel.run_until_cancelled(beating).await;
        // The others need not wait for the lease to end. If it fails, they do.
        let _ = timeout(GOODBYE, shared.client.revoke(self.lease)).await;
    }
}
