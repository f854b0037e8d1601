//! The status for people: as much as there is room for, the one thing that is wrong first.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::super::out::{self, Room, clipped, wrapped};
use super::vpn;
use crate::reconcile::status::{Condition, Status, Truth, Verdict, runs};

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();

/// Where there is no terminal, lines are as long as they are.
const ANY_WIDTH: usize = usize::MAX;
/// Lines of what is wrong first.
const FIRST: usize = 9;
/// Events of the history, and how many of them there is always room for.
const EVENTS: usize = 5;
const LAST_EVENTS: usize = 2;

/// As much as there is room for, or all of it.
pub(super) fn text(status: &Status, verbose: bool, room: Option<Room>, now: Timestamp) -> String {
    let width = room.map_or(ANY_WIDTH, |room| room.width);
    let mut text = String::new();
    if verbose {
        let _ = whole(&mut text, status, width, now);
        return match room {
            Some(room) => out::fitted(&text, room.width),
            None => text,
        };
    }
    let rows = room.unwrap_or(Room::USUAL).rows;
    let mut lines = verdict(status, width);
    lines.push(String::new());
    let left = rows.saturating_sub(lines.len());
    let history = events(status).count().min(EVENTS);
    let mut facts = String::new();
    let _ = brief(&mut facts, status, 0, now);
    let spare = left.saturating_sub(facts.lines().count() + 1 + history.min(LAST_EVENTS));
    if spare > 0 {
        facts.clear();
        let _ = brief(&mut facts, status, spare, now);
    }
    let facts: Vec<_> = facts.lines().map(str::to_owned).collect();
    match facts.len() > left {
        true => {
            lines.extend(facts.into_iter().take(left.saturating_sub(1)));
            lines.push(format!(
                "  {FAINT}`dstack-vpc status --verbose` says the rest{FAINT:#}"
            ));
        }
        false => {
            let events = left.saturating_sub(facts.len() + 1).min(history);
            lines.extend(facts);
            if events > 0 {
                lines.push(String::new());
                lines.extend(self::events(status).take(events));
            }
        }
    }
    for line in lines {
        text += &clipped(&line, width);
        text.push('\n');
    }
    text
}

/// In one word how it is, and behind it the first thing that is wrong.
fn verdict(status: &Status, width: usize) -> Vec<String> {
    let (word, style, but) = match status.verdict() {
        Verdict::Ready => ("ready", GOOD, ""),
        Verdict::Starting => ("starting", BAD, ""),
        Verdict::Degraded => ("degraded", BAD, ", but it serves"),
        Verdict::NotReady => ("not ready", BAD, ""),
    };
    let fine = match status.verdict() {
        Verdict::Ready => "everything is as it should be",
        _ => "the first reconcile has not ended",
    };
    let first = status.problems.first().map_or(fine, String::as_str);
    // What has lines of its own, as the words of a checker, keeps them.
    let text = match first.contains('\n') {
        true => format!("{word}{but}:\n{first}"),
        false => wrapped(&format!("{word}{but}: {first}"), 2, width)
            .trim_start()
            .to_owned(),
    };
    let text = text.replacen(word, &format!("{style}{word}{style:#}"), 1);
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if lines.len() > FIRST {
        lines.truncate(FIRST - 1);
        lines.push(format!(
            "  {FAINT}… `dstack-vpc status --verbose` says the rest{FAINT:#}"
        ));
    }
    for other in status.problems.iter().skip(1).take(2) {
        let first = other.lines().next().unwrap_or_default();
        lines.push(format!("  also: {first}"));
    }
    if let more @ 1.. = status.problems.len().saturating_sub(3) {
        lines.push(format!("  and {more} more"));
    }
    lines
}

/// What stands in every status; `peers` lines of them where there is a VPN.
fn brief(out: &mut String, status: &Status, peers: usize, now: Timestamp) -> std::fmt::Result {
    let generation = status
        .generation
        .map_or_else(|| "none".to_owned(), |number| number.to_string());
    let owed = if status.owed { " (not proven yet)" } else { "" };
    row(out, "generation", &format!("{generation}{owed}"))?;
    if let Some(unconfirmed) = &status.rollout.unconfirmed {
        let message = format!(
            "wants `dstack-vpc confirm` within {}, else generation {} serves again",
            in_seconds(unconfirmed.until, now),
            unconfirmed.back_to
        );
        row(out, "unconfirmed", &message)?;
    }
    row(out, "role", &status.role)?;
    let pending = match status.config.generation > status.config.observed_generation {
        true => " (has just changed: what stands here is not about it yet)",
        false => "",
    };
    row(out, "config", &format!("{}{pending}", status.config.source))?;
    if let Some(identity) = &status.identity {
        row(out, "app id", identity.app_id.as_deref().unwrap_or("none"))?;
        row(
            out,
            "certificate",
            &format!("until {}", identity.not_after.strftime("%Y-%m-%d %H:%M:%S UTC")),
        )?;
    }
    for fact in status.facts.iter().filter(|fact| fact.key == "gateway") {
        row(out, "gateway", &format!("{} ({})", fact.value, fact.source))?;
    }
    if let Some(node) = &status.node {
        vpn::node(out, node, peers, now)?;
    }
    if let Some(api) = &status.api {
        vpn::server(out, api)?;
    }
    if !status.services.is_empty() {
        let all = status.services.iter();
        let all: Vec<_> = all
            .map(|(name, service)| format!("{name} {}", service.state))
            .collect();
        row(out, "programs", &all.join(", "))?;
    }
    for owed in &status.owed_actions {
        row(out, "owed", owed)?;
    }
    if let Some(retry) = status.next_retry {
        row(out, "next retry", &format!("in {}", in_seconds(retry, now)))?;
    }
    for note in &status.notes {
        row(out, "note", note)?;
    }
    Ok(())
}

/// Everything, however long it gets.
fn whole(out: &mut String, status: &Status, width: usize, now: Timestamp) -> std::fmt::Result {
    match status.problems.as_slice() {
        [] => verdict(status, width)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))?,
        problems => {
            writeln!(out, "{BAD}{}{BAD:#}", status.verdict().word())?;
            for line in problems.iter().flat_map(|problem| problem.lines()) {
                writeln!(out, "  {line}")?;
            }
        }
    }
    writeln!(out)?;
    brief(out, status, ALL_PEERS, now)?;
    for (name, service) in &status.services {
        let pid = service.pid.map(|pid| format!(" pid {pid}")).unwrap_or_default();
        row(out, name, &format!("{}{pid}", service.state))?;
    }
    for condition in &status.conditions {
        row(out, &format!("{:?}", condition.kind), &condition_text(condition))?;
    }
    if !status.history.is_empty() {
        writeln!(out)?;
        let mut newest = events(status).take(EVENTS);
        newest.try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}

const ALL_PEERS: usize = usize::MAX;

/// The newest first, a line each.
fn events(status: &Status) -> impl Iterator<Item = String> {
    runs(&status.history).rev().filter_map(|same| {
        let event = same.last()?;
        let times = match same.len() {
            1 => String::new(),
            times => format!(" ({times} times)"),
        };
        let time = event.at.strftime("%H:%M:%S");
        let first = event.detail.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        Some(format!(
            "{FAINT}{time}{FAINT:#} {}{times}: {first}",
            event.outcome
        ))
    })
}

fn in_seconds(at: Timestamp, now: Timestamp) -> String {
    let seconds = (at - now).total(jiff::Unit::Second);
    // As a whole number: 0 may be -0 before.
    format!("{}s", seconds.map_or(0.0, f64::ceil).max(0.0) as u64)
}

fn condition_text(condition: &Condition) -> String {
    let word = match condition.status {
        Truth::True => "yes",
        Truth::False => "no",
        Truth::Unknown => "not known",
    };
    format!(
        "{word}, {} since {}",
        condition.reason,
        condition.since.strftime("%Y-%m-%d %H:%M:%S")
    )
}

pub(super) fn row(out: &mut String, name: &str, value: &str) -> std::fmt::Result {
    writeln!(out, "  {FAINT}{name:<16}{FAINT:#} {value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiStatus;
    use crate::node::{NodeStatus, Path, Peer, Step};
    use crate::reconcile::reasons;
    use crate::reconcile::status::{Event, ServiceStatus};

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn plain(status: &Status, room: Option<Room>) -> String {
        let text = text(status, false, room, now());
        anstream::adapter::strip_str(&text).to_string()
    }

    /// A server and node with as much to tell as there can be.
    fn crowded() -> Status {
        let event = |number: u8| Event {
            at: now(),
            generation: Some(number.into()),
            outcome: "live".to_owned(),
            cause: "a file changed".to_owned(),
            detail: format!(
                "nginx/nginx.conf; nginx: reload (backends changed, for the time {number}), and more"
            ),
            stage_ms: 1,
            act_ms: 1,
        };
        let peer = |number: u8| Peer {
            name: format!("db-{number}"),
            address: Some([100, 64, 0, number].into()),
            online: true,
            path: Path::Idle,
        };
        let up = ServiceStatus {
            state: "up".to_owned(),
            pid: Some(12),
            detail: String::new(),
        };
        let names = ["dstack-vpc", "headscale", "nginx", "tailscaled"];
        let mut status = Status {
            role: "server+node".to_owned(),
            generation: Some(7),
            node: Some(NodeStatus {
                step: Step::Joined,
                address: Some([100, 64, 0, 9].into()),
                peers: (1..40).map(peer).collect(),
                ..NodeStatus::default()
            }),
            api: Some(ApiStatus { nodes: 40, present: 39, ..ApiStatus::default() }),
            services: names.map(|name| (name.to_owned(), up.clone())).into(),
            history: (1..9).map(event).collect(),
            problems: vec![
                "nginx does not start, and supervisord has given it up (Exited too quickly): its log says why, and \
                 `dstack-vpc doctor` may know the cause"
                    .to_owned(),
                "the VPC server did not answer".to_owned(),
            ],
            ..Status::default()
        };
        status.config.source =
            "/etc/dstack-vpc/a/long/way/down/to/where/nobody/would/look/for/it/vpc.toml".to_owned();
        status.set(reasons::NOT_READY, "");
        status.set(reasons::SEE_MESSAGE, "");
        status
    }

    #[test]
    fn it_fits_any_screen_and_says_what_is_wrong_first() {
        let mut status = crowded();
        for (width, rows) in [(80, 23), (80, 24), (120, 40), (60, 16), (200, 100)] {
            let text = plain(&status, Some(Room { width, rows }));
            assert!(text.starts_with("not ready: nginx does not start"), "{text}");
            assert!(text.lines().count() <= rows, "{rows}:\n{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{width}:\n{text}"
            );
        }
        insta::assert_snapshot!(plain(&status, Some(Room { width: 80, rows: 23 })), @r"
        not ready: nginx does not start, and supervisord has given it up (Exited too
          quickly): its log says why, and `dstack-vpc doctor` may know the cause
          also: the VPC server did not answer

          generation       7
          role             server+node
          config           /etc/dstack-vpc/a/long/way/down/to/where/nobody/would/look/f…
          vpn              joined
          vpn address      100.64.0.9, no name yet
          peers            39 of 39 online
                           db-1             100.64.0.1      idle
                           db-2             100.64.0.2      idle
                           db-3             100.64.0.3      idle
                           db-4             100.64.0.4      idle
                           db-5             100.64.0.5      idle
                           db-6             100.64.0.6      idle
                           and 33 more
          vpc api          nodes can register and be found
          nodes            40, 39 present
          programs         dstack-vpc up, headscale up, nginx up, tailscaled up

        12:00:00 live: nginx/nginx.conf; nginx: reload (backends changed, for the time …
        12:00:00 live: nginx/nginx.conf; nginx: reload (backends changed, for the time …
        ");

        // The words of a checker may be long.
        let words: Vec<_> = (0..50).map(|line| format!("  line {line}")).collect();
        status.problems[0] = words.join("\n");
        let text = plain(&status, Some(Room { width: 80, rows: 23 }));
        assert!(text.starts_with("not ready:\n  line 0\n"), "{text}");
        assert!(
            text.contains("  line 6\n  … `dstack-vpc status --verbose`"),
            "{text}"
        );
        assert!(
            text.lines().count() <= 23 && text.contains("also: the VPC server"),
            "{text}"
        );
    }

    #[test]
    fn a_retry_that_is_due_is_in_no_time_and_one_in_vain_is_counted() {
        let mut status = crowded();
        status.next_retry = Some(now() - jiff::SignedDuration::from_millis(300));
        let refused = Event {
            outcome: "refused".to_owned(),
            ..status.history[0].clone()
        };
        status.history = vec![refused; 3];
        let text = plain(&status, None);
        assert!(text.contains("next retry       in 0s\n"), "{text}");
        assert!(
            text.contains("12:00:00 refused (3 times): nginx/nginx.conf"),
            "{text}"
        );
        assert_eq!(text.matches("refused").count(), 1, "{text}");
    }

    #[test]
    fn a_machine_that_is_well_says_so() {
        let mut status = crowded();
        status.problems.clear();
        status.set(reasons::READY, "");
        status.set(reasons::AS_CONFIGURED, "");
        let first = |status: &Status| plain(status, None).lines().next().unwrap_or_default().to_owned();
        assert_eq!(first(&status), "ready: everything is as it should be");
        assert_eq!(
            first(&Status::default()),
            "starting: the first reconcile has not ended"
        );
    }
}
