//! What the node does once it is decided: each act, and what is true after it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::super::files::{self, FileError, Readers};
use super::super::machine::Goal;
use super::super::pace::{Errand, Pace};
use super::super::server::{Announcement, Client, ServerError};
use super::super::tailscale::{CommandError, Tailscale, Up};
use super::super::view::View;
use super::{Owner, QUICK};

/// What the server knows of Headscale may be a little older than this node.
const DISOWNED: Duration = Duration::from_secs(3);

/// Why an act had no success, as an operator should read it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("{0}{trouble}", trouble = .1.as_ref().map(|words| format!(" ({words})")).unwrap_or_default())]
    Command(CommandError, Option<String>),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What one turn knows.
pub(super) struct Now<'a> {
    pub(super) goal: &'a Goal<'a>,
    pub(super) tailscale: &'a Tailscale,
    /// `None`: tailscaled does not answer.
    pub(super) view: Option<&'a View>,
}

impl Owner {
    pub(super) async fn register(&mut self, now: &Now<'_>) -> Result<(), ActError> {
        let Goal { settings, server, id } = now.goal;
        let welcome = Client::new(settings, *server).register(id, settings).await?;
        self.credentials
            .store(*server, now.goal.is_here(), id.clone(), welcome)?;
        // It has just said where Headscale is.
        self.offline = self.offline.map(|_| Instant::now());
        tracing::info!(%server, %id, "registered at the VPC server");
        Ok(())
    }

    pub(super) async fn log_in(&mut self, now: &Now<'_>, up: &Up) -> Result<(), ActError> {
        let Some(key) = self.credentials.key_file() else {
            return Ok(());
        };
        let commanded = now.tailscale.up(up, Some(&key));
        self.updates_forbidden = false;
        let is_in = |view: &View| view.is_up() || view.is_logged_in(&up.login_server);
        let done = match now.view.is_some_and(is_in) {
            // It is in this VPN or another already, so only the command knows when it is anew.
            true => commanded.await,
            // The command waits for a path to a relay as well.
            false => tokio::select! {
                done = commanded => done,
                () = until_up(now.tailscale, up) => Ok(()),
            },
        };
        match done {
            Ok(()) => {
                (self.strange_since, self.disowned) = (None, false);
                self.told = None;
                self.offline = None;
                self.credentials.drop_key()?;
                Ok(())
            }
            Err(error) => {
                if matches!(error, CommandError::Refused(_)) {
                    self.credentials.drop_key()?;
                }
                Err(explained(now.tailscale, error).await)
            }
        }
    }

    pub(super) async fn adjust(&mut self, now: &Now<'_>, up: &Up) -> Result<(), ActError> {
        let is_running = now.view.is_some_and(|view| view.prefs.want_running);
        let done = match is_running {
            true => now.tailscale.set(up).await,
            // Somebody said `tailscale down`.
            false => now.tailscale.up(up, None).await,
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => Err(explained(now.tailscale, error).await),
        }
    }

    pub(super) async fn announce(
        &mut self,
        now: &Now<'_>,
        announcement: Announcement,
    ) -> Result<(), ActError> {
        let settings = now.goal.settings;
        let client = Client::new(settings, announcement.server);
        let heard = client.announce(&announcement).await?;
        // Never in step with other nodes.
        let pause = settings.heartbeat.mul_f64(0.9 + 0.2 * fastrand::f64());
        self.heartbeat_due = Instant::now() + pause;
        *self.paces.of(Errand::Announcing) = Pace::default();
        self.told = Some(announcement);
        self.strange_since = match heard.in_vpn {
            true => None,
            false => self.strange_since.or_else(|| Some(Instant::now())),
        };
        self.disowned = self
            .strange_since
            .is_some_and(|since| since.elapsed() >= DISOWNED);
        if self.disowned {
            tracing::warn!("Headscale does not know this node any more; it logs in anew");
        }
        self.status.send_if_modified(|status| {
            let first = status.announced.is_none();
            status.announced = Some(Timestamp::now());
            first
        });
        Ok(())
    }

    pub(super) async fn rest(&mut self, now: &Now<'_>) -> Result<(), ActError> {
        self.credentials.drop_key()?;
        let quiet = now.view.is_some_and(|view| view.prefs.no_updates());
        if !quiet && !self.updates_forbidden {
            // Tried once: what it does not know it does not do.
            self.updates_forbidden = true;
            if let Err(error) = now.tailscale.forbid_updates().await {
                tracing::warn!("tailscaled could not be told to leave updates alone: {error}");
            }
        }
        Ok(())
    }

    /// Small files, and seldom: not worth a thread of their own.
    pub(super) fn publish(&mut self, now: &Now<'_>) -> Result<(), ActError> {
        let (Some(membership), Some(view)) = (self.credentials.membership(), now.view) else {
            return Ok(());
        };
        let (Some(address), Some(hostname)) = (view.address, &view.dns_name) else {
            return Ok(());
        };
        let readers = match &now.goal.settings.readers {
            Some(group) => Readers::Group(group),
            None => Readers::Us,
        };
        let contents = files::contents(membership, address, hostname, &view.json);
        files::write(&self.state.vpc(), &contents, readers)?;
        self.published = Some((Instant::now(), view.backend));
        Ok(())
    }
}

/// Returns once tailscaled runs as told, at the latest when the command that told it does.
async fn until_up(tailscale: &Tailscale, up: &Up) {
    loop {
        sleep(QUICK).await;
        if let Ok(view) = tailscale.look(false).await
            && view.is_logged_in(&up.login_server)
            && view.is_up()
            && view.prefs.hostname == up.hostname
        {
            return;
        }
    }
}

/// The command's words, with what tailscaled says when it is only the command that lost its patience.
async fn explained(tailscale: &Tailscale, error: CommandError) -> ActError {
    let trouble = match &error {
        CommandError::Refused(_) | CommandError::NotStarted { .. } => None,
        CommandError::Failed { .. } | CommandError::Slow { .. } => {
            tailscale.look(false).await.ok().and_then(|view| view.trouble())
        }
    };
    ActError::Command(error, trouble)
}
