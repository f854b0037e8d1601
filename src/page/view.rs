//! What stands on the page, in words: a pure function of what is known.

use std::fmt::Display;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::history::{self, ByStep, Entry};
use super::rates::Mesh;
use super::table::{Cell, Table};
use crate::api::NodeRow;
use crate::node::{NodeStatus, Path};
use crate::reconcile::status::{Condition, ConditionKind, Status, Truth, Verdict};
use crate::words;

/// Everything that the template shows.
#[derive(Debug, Serialize)]
pub(super) struct View {
    verdict: &'static str,
    /// `good`, `bad`, `wait`
    class: &'static str,
    sentence: String,
    /// The most urgent first.
    problems: Vec<String>,
    role: String,
    machine: Vec<Item>,
    conditions: Table,
    services: Option<Table>,
    vpn: Vec<Item>,
    peers: Option<Table>,
    /// Of a server.
    nodes: Option<Table>,
    mesh: Vec<Table>,
    history: Vec<Entry>,
    drawn: String,
}

/// One line of a list of facts.
#[derive(Debug, Serialize)]
struct Item {
    term: &'static str,
    value: String,
}

impl View {
    pub(super) fn new(
        status: &Status,
        nodes: Option<Result<Vec<NodeRow>, String>>,
        mesh: Mesh,
        diffs: &ByStep,
        now: Timestamp,
    ) -> Self {
        let verdict = status.verdict();
        let (class, sentence) = match verdict {
            Verdict::Starting => ("wait", "the first reconcile has not ended".to_owned()),
            Verdict::Ready => ("good", "everything is as it should be".to_owned()),
            Verdict::Degraded => (
                "bad",
                "it serves, but not everything is as it should be".to_owned(),
            ),
            Verdict::NotReady => ("bad", "it does not serve as it should".to_owned()),
        };
        Self {
            verdict: verdict.word(),
            class,
            sentence,
            problems: status.problems.clone(),
            role: status.role.clone(),
            machine: machine(status, now),
            conditions: conditions(&status.conditions, now),
            services: (!status.services.is_empty()).then(|| services(status)),
            vpn: status
                .node
                .as_ref()
                .map(|node| vpn(node, now))
                .unwrap_or_default(),
            peers: status.node.as_ref().filter(|node| node.in_vpn()).map(peers),
            nodes: nodes.map(|nodes| self::nodes(nodes, now)),
            mesh: mesh_tables(mesh),
            history: history::entries(&status.history, diffs),
            drawn: moment(now),
        }
    }
}

/// A moment, for people anywhere.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", words::since(at, now))
}

fn machine(status: &Status, now: Timestamp) -> Vec<Item> {
    let mut items = vec![Item {
        term: "Role",
        value: status.role.clone(),
    }];
    let mut add = |term, value: String| items.push(Item { term, value });
    let owed = if status.owed { ", not proven yet" } else { "" };
    add(
        "Generation",
        match status.generation {
            Some(number) => format!("{number}{owed}"),
            None => "none yet".to_owned(),
        },
    );
    if let Some(unconfirmed) = &status.rollout.unconfirmed {
        add(
            "Waits to be confirmed",
            format!(
                "until {}, else generation {} serves again",
                moment(unconfirmed.until),
                unconfirmed.back_to
            ),
        );
    }
    add("Configuration", status.config.source.clone());
    match &status.identity {
        Some(identity) => {
            let left = Duration::try_from(identity.not_after - now).ok();
            let left = left.map_or("it has ended".to_owned(), |left| {
                format!("{} left", words::span(left))
            });
            add("App id", identity.app_id.clone().unwrap_or("none".to_owned()));
            add(
                "Certificate",
                format!("until {}, {left}", moment(identity.not_after)),
            );
        }
        None => add("Certificate", "none yet".to_owned()),
    }
    for fact in status.facts.iter().filter(|fact| fact.key == "gateway") {
        add("Gateway", format!("{} ({})", fact.value, fact.source));
    }
    if let Some(success) = status.last_success {
        add("Last found as configured", ago(success, now));
    }
    if let Some(retry) = status.next_retry {
        add("Tried again", moment(retry));
    }
    if let Some(started) = status.started_at {
        add(
            "Daemon",
            format!("{}, for {}", status.version, words::since(started, now)),
        );
    }
    for note in &status.notes {
        add("Note", note.clone());
    }
    items
}

fn conditions(conditions: &[Condition], now: Timestamp) -> Table {
    // That it is degraded stands above.
    let shown = conditions
        .iter()
        .filter(|condition| condition.kind != ConditionKind::Degraded);
    let rows = shown.map(|condition| {
        let holds = match condition.status {
            Truth::True => Cell::judged("yes", true),
            Truth::False => Cell::judged("no", false),
            Truth::Unknown => Cell::from("not known".to_owned()),
        };
        vec![
            format!("{:?}", condition.kind).into(),
            holds,
            words::since(condition.since, now).into(),
            condition.message.clone().into(),
        ]
    });
    Table::new("Conditions", &["Condition", "Holds", "For", "Why"], rows)
}

fn services(status: &Status) -> Table {
    let rows = status.services.iter().map(|(name, service)| {
        vec![
            name.clone().into(),
            Cell::judged(&service.state, service.state == "up"),
            or_dash(&service.pid).into(),
            service.detail.clone().into(),
        ]
    });
    Table::new("Programs", &["Program", "State", "Pid", "supervisord says"], rows)
}

fn vpn(node: &NodeStatus, now: Timestamp) -> Vec<Item> {
    let since = node
        .since
        .map(|since| format!(", for {}", words::since(since, now)))
        .unwrap_or_default();
    let step = Item {
        term: "This node",
        value: format!("{}{since}", node.step.words()),
    };
    let mut items = vec![step];
    let mut add = |term, value: Option<String>| items.extend(value.map(|value| Item { term, value }));
    add("Problem", node.problem.clone());
    add("Address", node.address.map(|address| address.to_string()));
    add("Name", node.dns_name.clone());
    add("Announced", node.announced.map(|at| ago(at, now)));
    items
}

fn peers(node: &NodeStatus) -> Table {
    // Those that can be reached first; both parts in the order of their names.
    let (there, away): (Vec<_>, Vec<_>) = node.peers.iter().partition(|peer| peer.online);
    let rows = there.into_iter().chain(away).map(|peer| {
        let path = match &peer.path {
            Path::Idle => "idle".to_owned(),
            Path::Direct(to) => format!("direct, {to}"),
            Path::Relayed(relay) => format!("relayed by {relay}"),
        };
        vec![
            peer.name.clone().into(),
            or_dash(&peer.address).into(),
            Cell::judged(if peer.online { "online" } else { "offline" }, peer.online),
            path.into(),
        ]
    });
    Table::new("Peers in the VPN", &["Name", "Address", "State", "Path"], rows)
        .or_else("this node knows of no other yet")
}

fn nodes(nodes: Result<Vec<NodeRow>, String>, now: Timestamp) -> Table {
    let head = ["Name", "State", "Seen", "Type", "Address", "Host name", "App"];
    let mut nodes = match nodes {
        Ok(nodes) => nodes,
        Err(why) => {
            return Table::new("Not known", &head, [])
                .or_else(&format!("the registry cannot be read: {why}"));
        }
    };
    let present = nodes.iter().filter(|node| node.present).count();
    let caption = format!("{} known, {present} present", nodes.len());
    // Who is silent is what one looks for.
    nodes.sort_by(|a, b| (a.present, &a.name, &a.id).cmp(&(b.present, &b.name, &b.id)));
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.clone().into(),
            Cell::judged(if node.present { "present" } else { "silent" }, node.present),
            ago(node.last_seen, now).into(),
            or_dash(&node.node_type).into(),
            or_dash(&node.ip).into(),
            or_dash(&node.hostname).into(),
            node.owner.to_string().into(),
        ]
    });
    Table::new(caption, &head, rows).or_else("none has registered yet")
}

fn mesh_tables(mesh: Mesh) -> Vec<Table> {
    let targets = mesh.targets.iter().map(|target| {
        let name = match target.name.as_str() {
            "agent" => "the guest agent",
            "backend" => "backends of this machine",
            "self" => "the proxy itself",
            "other" => "other apps",
            app => app,
        };
        vec![
            name.to_owned().into(),
            target.requests.to_string().into(),
            rate(target.request_rate).into(),
            // Those of long ago are nobody's trouble now.
            Cell::number(
                target.errors,
                (target.error_rate > 0.0).then_some("and more are coming"),
            ),
            rate(target.error_rate).into(),
            counted(&target.failed).into(),
            words::bytes(target.sent).into(),
            words::bytes(target.received).into(),
        ]
    });
    let head = [
        "Target", "Requests", "per s", "Errors", "per s", "Which", "Sent", "Received",
    ];
    let over = words::span(mesh.over);
    let calls = Table::new(format!("Calls, with rates over the last {over}"), &head, targets)
        .numbers(&[1, 2, 3, 4, 6, 7])
        .or_else("nothing has been called yet");
    let callers = mesh.callers.iter().map(|callers| {
        vec![
            callers.backend.clone().into(),
            callers.allowed.to_string().into(),
            callers
                .refused
                .iter()
                .map(|(_, n)| n)
                .sum::<u64>()
                .to_string()
                .into(),
            counted(&callers.refused).into(),
        ]
    });
    let callers = Table::new("Callers", &["Backend", "Let in", "Refused", "Why"], callers)
        .numbers(&[1, 2])
        .or_else("nobody has called yet");
    let sessions = mesh.sessions.iter().map(|sessions| {
        vec![
            format!("{} {}", sessions.kind, sessions.name).into(),
            sessions.open.to_string().into(),
            counted(&sessions.ended).into(),
            words::bytes(sessions.received).into(),
            words::bytes(sessions.sent).into(),
        ]
    });
    let head = ["Over TCP", "Open", "Ended", "Received", "Sent"];
    let sessions = Table::new("TCP sessions", &head, sessions).numbers(&[1, 3, 4]);
    let mut tables = vec![calls, callers];
    tables.extend((!sessions.rows.is_empty()).then_some(sessions));
    tables
}

fn counted(counts: &[(&str, u64)]) -> String {
    let counts = counts.iter().filter(|(_, n)| *n > 0);
    let counts: Vec<_> = counts.map(|(what, n)| format!("{what} {n}")).collect();
    match counts.is_empty() {
        true => "-".to_owned(),
        false => counts.join(", "),
    }
}

fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{rate:.2}"),
        ..10.0 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    }
}

fn or_dash(value: &Option<impl Display>) -> String {
    value.as_ref().map_or("-".to_owned(), ToString::to_string)
}
