//! Whether the app that a forward leads to lets us in, tried once by somebody who has no listeners.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use super::tls::Credentials;
use super::{Failure, Target, connect};
use crate::identity::Identity;
use crate::names::{AppId, InstanceId};
use crate::spec::Gateway;

/// Who refuses us, or finds nobody behind itself, hangs up within this time.
const SECOND_THOUGHTS: Duration = Duration::from_millis(700);

/// Shakes hands and leaves. Nothing is sent.
///
/// # Errors
/// A sentence.
pub(crate) async fn reach(
    identity: &Identity,
    gateway: &Gateway,
    (app, instance, port): (AppId, Option<InstanceId>, u16),
    patience: Duration,
) -> Result<(), String> {
    let config = Credentials::new(identity).and_then(|credentials| credentials.config(app, &[]));
    let config = config.map_err(|error| format!("the certificate cannot be used: {error}"))?;
    let words = |failure: Failure| failure.to_string();
    let endpoint = Target::proven(app, instance, port)
        .endpoint(gateway)
        .map_err(words)?;
    let connecting = connect::tls(&endpoint, &config, Instant::now() + patience, patience);
    let mut peer = connecting.await.map_err(words)?;
    // A client has shaken hands before the other side has looked at who it is.
    match timeout(SECOND_THOUGHTS, peer.read(&mut [0])).await {
        Ok(Ok(0) | Err(_)) => Err(
            "it hung up after the handshake: its allowed_apps does not have this app, or nothing listens behind its backend"
                .to_owned(),
        ),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
