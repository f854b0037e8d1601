//! Keeps what is needed to use Headscale: an API key that it accepts, and the user `default`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Client, health};
use super::command::create_api_key;
use super::key_file::KeyFile;
use super::wire::{ApiKey, prefix_of};
use super::{Access, HeadscaleError, Secret};

/// Whom every node belongs to.
const USER: &str = "default";

/// How often a Headscale that works is looked at: the key grows old, and the database may have been replaced.
const LOOK: Duration = Duration::from_secs(60);

/// How often it is asked meanwhile whether it is well, and how long it may take to say so: together that is how long one
/// that hangs goes unnoticed.
const HEALTH: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);

/// However young a key is to be kept.
const SHORTEST: Duration = Duration::from_secs(1);

/// The wait after one failure, and after many.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// A key that was refused as soon as it was made is not followed by another within this, or keys would pile up.
const AFTER_STRANGER: Duration = Duration::from_secs(600);

/// A Headscale that can be used.
pub(super) struct Session {
    pub(super) client: Client,
    /// The id of [`USER`].
    pub(super) user: u64,
    /// When the key wants to be renewed; `None`: that is not known.
    renew_in: Option<Duration>,
}

/// One task, until it is cancelled.
pub(super) struct Keeper {
    access: watch::Receiver<Option<Access>>,
    /// Set to `None` by a call that found it stale.
    session: watch::Sender<Option<Arc<Session>>>,
    trouble: watch::Sender<Option<String>>,
    cancel: CancellationToken,
    /// When a key may be made again.
    make_after: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(
        access: watch::Receiver<Option<Access>>,
        session: watch::Sender<Option<Arc<Session>>>,
        trouble: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            access,
            session,
            trouble,
            cancel,
            make_after: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut session = self.session.subscribe();
        let mut failures = 0;
        let mut sick = None;
        loop {
            let access = self.access.borrow_and_update().clone();
            let looked = match (&access, sick.take()) {
                (Some(_), Some(error)) => Some(Err(error)),
                (Some(access), None) => Some(self.look(access).await),
                (None, _) => None,
            };
            let is_usable = matches!(looked, Some(Ok(_)));
            let wait = match &looked {
                Some(Ok(session)) => session.renew_in.unwrap_or(LOOK).clamp(SHORTEST, LOOK),
                Some(Err(_)) => FIRST.saturating_mul(1 << failures.min(8)).min(LONGEST),
                None => LOOK,
            };
            failures = if is_usable { 0 } else { failures + 1 };
            self.publish(looked);
            let end = Instant::now() + wait.mul_f64(0.75 + 0.25 * fastrand::f64());
            tokio::select! {
                () = self.cancel.cancelled() => return,
                error = fall_sick(access.as_ref().filter(|_| is_usable)) => sick = Some(error),
                () = tokio::time::sleep_until(end) => {}
                _ = session.wait_for(Option::is_none), if is_usable => {}
                changed = self.access.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    (failures, self.make_after) = (0, None);
                }
            }
        }
    }

    fn publish(&self, looked: Option<Result<Session, HeadscaleError>>) {
        let (session, trouble) = match looked {
            Some(Ok(session)) => (Some(Arc::new(session)), None),
            Some(Err(HeadscaleError::Closing)) | None => (None, None),
            Some(Err(e)) => (None, Some(e.to_string())),
        };
        self.session.send_replace(session);
        self.trouble.send_if_modified(|now| {
            let is_other = *now != trouble;
            match &trouble {
                Some(why) if is_other => tracing::warn!("Headscale cannot be used: {why}"),
                None if is_other => tracing::info!("Headscale can be used"),
                _ => {}
            }
            *now = trouble;
            is_other
        });
    }

    /// Everything that is needed, made where it is missing.
    async fn look(&mut self, access: &Access) -> Result<Session, HeadscaleError> {
        self.ask(health(access.listen)).await?;
        let file = KeyFile::new(&access.key_file);
        let stored = blocking(&file, KeyFile::read)
            .await
            .map_err(|e| key_file(access, e))?;
        let (mut key, mut is_new) = match stored {
            Some(key) => (key, false),
            None => (self.make_key(access, &file).await?, true),
        };
        let user = loop {
            let client = Client::new(access.listen, key.clone());
            match self.ask(user(&client)).await {
                Err(HeadscaleError::Unauthorized) if is_new => {
                    self.make_after = Some(Instant::now() + AFTER_STRANGER);
                    return Err(stranger(access));
                }
                Err(HeadscaleError::Unauthorized) => {
                    tracing::info!("Headscale does not accept the stored API key: making another");
                    (key, is_new) = (self.make_key(access, &file).await?, true);
                }
                user => break user?,
            }
        };
        let client = Client::new(access.listen, key);
        let keys = self.ask(client.api_keys()).await?.api_keys;
        let renew_in = keys
            .iter()
            .find(|key| Some(key.prefix()) == prefix_of(client.key()))
            .and_then(|key| renew_in(key, access.key_lifetime, Timestamp::now()));
        let client = match renew_in {
            Some(Duration::ZERO) => self.renewed(access, &file).await.unwrap_or(client),
            _ => client,
        };
        self.ask(tidy(access, &file, &client, &keys)).await?;
        Ok(Session {
            client,
            user,
            renew_in,
        })
    }

    /// The client with a new key; `None`: there is none, and the old one is good for a while.
    async fn renewed(&mut self, access: &Access, file: &KeyFile) -> Option<Client> {
        match self.make_key(access, file).await {
            Ok(key) => Some(Client::new(access.listen, key)),
            Err(e) => {
                tracing::warn!("Headscale's API key is to be renewed: {e}");
                None
            }
        }
    }

    /// Not cut short: a key that was made has to be stored, or nobody could ever delete it.
    async fn make_key(&mut self, access: &Access, file: &KeyFile) -> Result<Secret, HeadscaleError> {
        if self.make_after.is_some_and(|after| Instant::now() < after) {
            return Err(stranger(access));
        }
        let key = create_api_key(access).await?;
        let to_store = key.clone();
        let stored = blocking(file, move |file| {
            let prefix = prefix_of(&to_store).unwrap_or_default();
            file.store(&to_store, prefix)
        });
        if let Err(source) = stored.await {
            let prefix = prefix_of(&key).unwrap_or_default();
            let client = Client::new(access.listen, key.clone());
            if let Err(e) = client.delete_api_key(prefix).await {
                tracing::warn!("an API key of Headscale is left over until it expires: {e}");
            }
            return Err(key_file(access, source));
        }
        tracing::info!("a new API key for Headscale");
        Ok(key)
    }

    /// Asking can be given up at any time.
    async fn ask<T>(
        &self,
        asking: impl Future<Output = Result<T, HeadscaleError>>,
    ) -> Result<T, HeadscaleError> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(HeadscaleError::Closing),
            answer = asking => answer,
        }
    }
}

/// Asks now and then whether it is well, until it is not.
async fn fall_sick(access: Option<&Access>) -> HeadscaleError {
    let Some(access) = access else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(HEALTH).await;
        let doing = "say that it is well";
        let late = HeadscaleError::Timeout {
            doing,
            after: PATIENCE,
        };
        let asked = tokio::time::timeout(PATIENCE, health(access.listen)).await;
        if let Err(error) = asked.unwrap_or(Err(late)) {
            return error;
        }
    }
}

/// The id of [`USER`], who is made when there is none.
async fn user(client: &Client) -> Result<u64, HeadscaleError> {
    if let Some(user) = client.user(USER).await? {
        return Ok(user.id);
    }
    match client.create_user(USER).await {
        Ok(user) => Ok(user.id),
        // Somebody else has just made it.
        Err(e) => client.user(USER).await?.map(|user| user.id).ok_or(e),
    }
}

/// Deletes every key that was made here but the one in use; what cannot be deleted now is deleted later.
async fn tidy(
    access: &Access,
    file: &KeyFile,
    client: &Client,
    listed: &[ApiKey],
) -> Result<(), HeadscaleError> {
    let made = blocking(file, KeyFile::made)
        .await
        .map_err(|e| key_file(access, e))?;
    let own = prefix_of(client.key());
    let mut left = Vec::new();
    for prefix in &made {
        let is_own = Some(prefix.as_str()) == own;
        if is_own || !listed.iter().any(|key| key.prefix() == prefix) {
            left.extend(is_own.then(|| prefix.clone()));
        } else if let Err(e) = client.delete_api_key(prefix).await {
            tracing::debug!(error = %e, "a former API key of Headscale stays for now");
            left.push(prefix.clone());
        }
    }
    if left != made {
        blocking(file, move |file| file.set_made(&left))
            .await
            .map_err(|e| key_file(access, e))?;
    }
    Ok(())
}

/// Until two thirds of its life have passed, or of the life that a key is given now.
fn renew_in(key: &ApiKey, lifetime: Duration, now: Timestamp) -> Option<Duration> {
    let (made, expires) = (key.created_at?, key.expiration?);
    let life = Duration::try_from(expires.duration_since(made)).unwrap_or_default();
    let age = Duration::try_from(now.duration_since(made)).unwrap_or_default();
    Some((life.min(lifetime) * 2 / 3).saturating_sub(age))
}

fn key_file(access: &Access, source: io::Error) -> HeadscaleError {
    HeadscaleError::KeyFile {
        path: access.key_file.clone(),
        source,
    }
}

fn stranger(access: &Access) -> HeadscaleError {
    HeadscaleError::Stranger {
        listen: access.listen,
        program: access.program.clone(),
    }
}

/// Files are synced on a thread of their own.
async fn blocking<T: Send + 'static>(
    file: &KeyFile,
    work: impl FnOnce(&KeyFile) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = file.clone();
    tokio::task::spawn_blocking(move || work(&file))
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}
