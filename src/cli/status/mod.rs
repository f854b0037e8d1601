//! `status`: what the daemon says of itself, once or as it goes on.

mod text;
mod vpn;

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use self::text::{BAD, text};
use super::out::{Interrupted, Room, obeys};
use super::screen::Screen;
use super::{Context, block_on, out};
use crate::reconcile::control::{AskError, Daemon};
use crate::reconcile::status::{Status, Verdict};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Say everything, also what does not fit onto the screen
    #[arg(short, long)]
    verbose: bool,
    /// Go on as it changes, until Ctrl-C: in place on a terminal, else one after the other
    #[arg(short, long)]
    watch: bool,
}

/// Exit 0 when the machine is ready and as configured, 1 when it is not or no daemon answers.
pub(super) fn status(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        let daemon = Daemon(&context.state);
        let status = daemon.status().await?;
        match args.watch {
            true if !args.json && Room::on_terminal().is_some() && obeys() => {
                live(&daemon, status, args).await
            }
            true => repeated(&daemon, status, args).await,
            false => {
                show(&status, args)?;
                Ok(match status.verdict() {
                    Verdict::Ready => ExitCode::SUCCESS,
                    Verdict::Starting | Verdict::Degraded | Verdict::NotReady => ExitCode::FAILURE,
                })
            }
        }
    })?
}

fn show(status: &Status, args: &Args) -> anyhow::Result<()> {
    match (args.json, args.watch) {
        // One object a line can be read while it goes on.
        (true, true) => out::line(serde_json::to_string(status)?),
        (true, false) => out::line(serde_json::to_string_pretty(status)?),
        (false, _) => {
            // The prompt needs a row, too.
            let room = Room::on_terminal().map(|room| Room {
                rows: room.rows.saturating_sub(1),
                ..room
            });
            out::print(text(status, args.verbose, room, Timestamp::now()))
        }
    }
}

/// For a file or another program: each news behind the last.
async fn repeated(daemon: &Daemon<'_>, mut status: Status, args: &Args) -> anyhow::Result<ExitCode> {
    loop {
        show(&status, args)?;
        if !args.json {
            out::line("")?;
        }
        let before = status;
        status = loop {
            let next = daemon.next_status().await?;
            if next != before {
                break next;
            }
        };
    }
}

/// For a person at a terminal. A daemon that goes away may come back.
async fn live(daemon: &Daemon<'_>, status: Status, args: &Args) -> anyhow::Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let screen = Screen::open()?;
    let mut now = Ok(status);
    let mut next = Box::pin(daemon.next_status());
    loop {
        let room = Room::on_terminal().unwrap_or(Room::USUAL);
        screen.draw(&picture(&now, args.verbose, room), &room)?;
        tokio::select! {
            _ = interrupted.recv() => return Err(Interrupted.into()),
            _ = terminated.recv() => return Err(Interrupted.into()),
            _ = hung_up.recv() => return Err(Interrupted.into()),
            _ = resized.recv() => {}
            // Times run on while nothing happens.
            () = sleep(Duration::from_secs(1)) => {}
            news = &mut next => {
                if news.is_err() {
                    sleep(Duration::from_millis(200)).await;
                }
                next = Box::pin(daemon.next_status());
                now = news;
            }
        }
    }
}

fn picture(now: &Result<Status, AskError>, verbose: bool, room: Room) -> String {
    match now {
        Ok(status) => text(status, verbose, Some(room), Timestamp::now()),
        Err(error) => format!(
            "{BAD}no answer{BAD:#}: {error}\n\nIt is asked again until it answers, or until Ctrl-C.\n"
        ),
    }
}
