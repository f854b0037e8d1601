//! The registry as requests find it: opened as soon as that can be done, and anew when its settings change.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::ApiSettings;
use super::error::ApiError;
use super::shared_key::{self, SharedKey};
use crate::facts::backoff::Backoff;
use crate::identity::make_private_dir;
use crate::paths::StateDir;
use crate::registry::{self, Registry, RegistrySettings};

/// How long a request waits for a registry that is just being opened.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) enum Store {
    Opening,
    Open(Arc<Opened>),
    /// Why it cannot be opened. It is tried again.
    Failed(String),
}

pub(super) struct Opened {
    pub(super) registry: Arc<dyn Registry>,
    /// Or why there is none. It is tried again.
    pub(super) shared_key: Result<SharedKey, String>,
}

/// The registry, as soon as it is open.
///
/// # Errors
/// It cannot be opened, or not soon.
pub(super) async fn opened(store: &watch::Receiver<Store>) -> Result<Arc<Opened>, ApiError> {
    let mut store = store.clone();
    let no_longer_opening = store.wait_for(|store| !matches!(store, Store::Opening));
    let found = timeout(PATIENCE, no_longer_opening).await;
    let cause = match found.ok().and_then(Result::ok).as_deref() {
        Some(Store::Open(opened)) => return Ok(Arc::clone(opened)),
        Some(Store::Failed(why)) => why.clone(),
        Some(Store::Opening) | None => "it is being opened".to_owned(),
    };
    Err(ApiError::unavailable(
        "the registry cannot be used at the moment",
        cause,
    ))
}

/// Whether `opened` has not been replaced.
pub(super) fn is(store: &watch::Receiver<Store>, opened: &Opened) -> bool {
    matches!(&*store.borrow(), Store::Open(now) if Arc::ptr_eq(&now.registry, &opened.registry))
}

/// The task that owns the registry.
pub(super) struct Keeper {
    pub(super) settings: watch::Receiver<Arc<ApiSettings>>,
    pub(super) store: watch::Sender<Store>,
    pub(super) state: StateDir,
    pub(super) cancel: CancellationToken,
}

impl Keeper {
    /// Keeps a registry open until it is cancelled, and closes it then.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        while !self.cancel.is_cancelled() {
            let settings = self.settings.borrow().registry.clone();
            // Cut short at the end only: an attempt that goes on unseen would be in the way of the next.
            let opened = tokio::select! {
                opened = self.open(&settings) => opened,
                () = self.cancel.cancelled() => return,
            };
            match opened {
                Ok(registry) => {
                    self.until_changed(&settings, self.serve(&registry)).await;
                    // Requests wait meanwhile for the next one.
                    self.store.send_replace(Store::Opening);
                    registry.close().await;
                    backoff = Backoff::default();
                }
                Err(why) => {
                    self.failed(why);
                    let pause = sleep(backoff.after(false));
                    if self.until_changed(&settings, pause).await.is_none() {
                        backoff = Backoff::default();
                    }
                }
            }
        }
    }

    /// `None` when it was cut short, because the settings are others now or this is the end.
    async fn until_changed<T>(
        &self,
        settings: &RegistrySettings,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut now = self.settings.clone();
        tokio::select! {
            done = work => Some(done),
            _ = now.wait_for(|now| now.registry != *settings) => None,
            () = self.cancel.cancelled() => None,
        }
    }

    async fn open(&self, settings: &RegistrySettings) -> Result<Arc<dyn Registry>, String> {
        let dir = self.state.registry();
        make_private_dir(&dir).map_err(|error| format!("{} cannot be made: {error}", dir.display()))?;
        registry::open(settings, &dir, self.cancel.child_token())
            .await
            .map_err(|error| error.to_string())
    }

    fn failed(&self, why: String) {
        self.store.send_if_modified(|store| {
            let is_new = !matches!(store, Store::Failed(known) if *known == why);
            if is_new {
                tracing::error!("the registry cannot be opened: {why}");
                *store = Store::Failed(why);
            }
            is_new
        });
    }

    /// Offers the registry, without end. Nodes are found at once, and can register once there is a shared key.
    async fn serve(&self, registry: &Arc<dyn Registry>) {
        let mut backoff = Backoff::default();
        let mut known = None;
        loop {
            let shared_key = shared_key::establish(registry.as_ref(), &self.state).await;
            let shared_key = shared_key.map_err(|error| error.to_string());
            let is_ok = shared_key.is_ok();
            if known.as_ref() != Some(&shared_key) {
                if let Err(why) = &shared_key {
                    tracing::error!("nodes cannot register: {why}");
                }
                known = Some(shared_key.clone());
                self.store.send_replace(Store::Open(Arc::new(Opened {
                    registry: Arc::clone(registry),
                    shared_key,
                })));
            }
            if is_ok {
                return std::future::pending().await;
            }
            sleep(backoff.after(false)).await;
        }
    }
}
