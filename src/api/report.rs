//! What `status` says of the server side.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::store::Store;
use super::{ApiSettings, ApiStatus, Shared};

/// How often nodes are counted.
const COUNT: Duration = Duration::from_secs(5);

/// The task that keeps the status true.
pub(super) struct Reporter {
    settings: watch::Receiver<Arc<ApiSettings>>,
    store: watch::Receiver<Store>,
    headscale: watch::Receiver<Option<String>>,
    status: watch::Sender<ApiStatus>,
    cancel: CancellationToken,
}

impl Reporter {
    pub(super) fn new(shared: &Shared, cancel: CancellationToken) -> (Self, watch::Receiver<ApiStatus>) {
        let mut reporter = Self {
            settings: shared.settings.subscribe(),
            store: shared.store.clone(),
            headscale: shared.headscale.trouble(),
            status: watch::Sender::default(),
            cancel,
        };
        let now = reporter.look();
        reporter.status.send_replace(now);
        let receiver = reporter.status.subscribe();
        (reporter, receiver)
    }

    pub(super) async fn run(mut self) {
        loop {
            let now = self.look();
            self.status.send_if_modified(|status| {
                let is_other = *status != now;
                *status = now;
                is_other
            });
            let gone = tokio::select! {
                changed = self.settings.changed() => changed.is_err(),
                changed = self.store.changed() => changed.is_err(),
                changed = self.headscale.changed() => changed.is_err(),
                () = tokio::time::sleep(COUNT) => false,
                () = self.cancel.cancelled() => true,
            };
            if gone {
                return;
            }
        }
    }

    fn look(&mut self) -> ApiStatus {
        let mut status = ApiStatus::default();
        let problems = &mut status.problems;
        match &*self.store.borrow_and_update() {
            Store::Opening => problems.push("the registry is being opened".to_owned()),
            Store::Failed(why) => problems.push(format!("the registry cannot be opened: {why}")),
            Store::Open(opened) => {
                problems.extend(opened.registry.trouble());
                problems.extend(opened.shared_key.as_ref().err().cloned());
                let census = opened.registry.census();
                (status.nodes, status.present) = (census.nodes, census.present);
            }
        }
        problems.extend(self.headscale.borrow_and_update().clone());
        if let Err(why) = &self.settings.borrow_and_update().server_url {
            problems.push(format!("nodes cannot register: {why}"));
        }
        status
    }
}
