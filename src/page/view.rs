//! What stands on the page, in words: a pure function of what is known.

use std::fmt::Display;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::history::{self, ByStep, Entry};
use super::rates::Mesh;
use crate::api::NodeRow;
use crate::node::{NodeStatus, Path};
use crate::reconcile::status::{Condition, ConditionKind, Status, Truth, Verdict};
use crate::words;

/// Nodes and peers on the page; `dstack-vpc nodes` has all of them.
const MOST_ROWS: usize = 200;

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

#[derive(Debug, Serialize)]
struct Table {
    caption: String,
    head: Vec<&'static str>,
    /// Columns of numbers stand to the right; the first is the row's own head.
    numbers: Vec<bool>,
    rows: Vec<Row>,
    /// Said instead of, or below, the rows.
    note: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// `good`, `bad`, or neither.
    class: &'static str,
    cells: Vec<String>,
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
        let (word, class) = match condition.status {
            Truth::True => ("yes", "good"),
            Truth::False => ("no", "bad"),
            Truth::Unknown => ("not known", ""),
        };
        let for_ = words::since(condition.since, now);
        Row {
            class,
            cells: vec![
                format!("{:?}", condition.kind),
                word.to_owned(),
                for_,
                condition.message.clone(),
            ],
        }
    });
    Table::new("Conditions", &["Condition", "Holds", "For", "Why"], rows)
}

fn services(status: &Status) -> Table {
    let rows = status.services.iter().map(|(name, service)| Row {
        class: if service.state == "up" { "good" } else { "bad" },
        cells: vec![
            name.clone(),
            service.state.clone(),
            or_dash(&service.pid),
            service.detail.clone(),
        ],
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
    let rows = there.into_iter().chain(away).map(|peer| Row {
        class: if peer.online { "good" } else { "bad" },
        cells: vec![
            peer.name.clone(),
            or_dash(&peer.address),
            if peer.online { "online" } else { "offline" }.to_owned(),
            match &peer.path {
                Path::Idle => "idle".to_owned(),
                Path::Direct(to) => format!("direct, {to}"),
                Path::Relayed(relay) => format!("relayed by {relay}"),
            },
        ],
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
    let rows = nodes.iter().map(|node| Row {
        class: if node.present { "good" } else { "bad" },
        cells: vec![
            node.name.clone(),
            if node.present { "present" } else { "silent" }.to_owned(),
            ago(node.last_seen, now),
            or_dash(&node.node_type),
            or_dash(&node.ip),
            or_dash(&node.hostname),
            node.owner.to_string(),
        ],
    });
    Table::new(caption, &head, rows).or_else("none has registered yet")
}

fn mesh_tables(mesh: Mesh) -> Vec<Table> {
    let targets = mesh.targets.iter().map(|target| Row {
        class: "",
        cells: vec![
            match target.name.as_str() {
                "agent" => "the guest agent".to_owned(),
                "backend" => "backends of this machine".to_owned(),
                "self" => "the proxy itself".to_owned(),
                "other" => "other apps".to_owned(),
                app => app.to_owned(),
            },
            target.requests.to_string(),
            rate(target.request_rate),
            target.errors.to_string(),
            rate(target.error_rate),
            counted(&target.failed),
            words::bytes(target.sent),
            words::bytes(target.received),
        ],
    });
    let head = [
        "Target", "Requests", "per s", "Errors", "per s", "Which", "Sent", "Received",
    ];
    let over = words::span(mesh.over);
    let calls = Table::new(format!("Calls, with rates over the last {over}"), &head, targets)
        .numbers(&[1, 2, 3, 4, 6, 7])
        .or_else("nothing has been called yet");
    let callers = mesh.callers.iter().map(|callers| Row {
        class: "",
        cells: vec![
            callers.backend.clone(),
            callers.allowed.to_string(),
            callers.refused.iter().map(|(_, n)| n).sum::<u64>().to_string(),
            counted(&callers.refused),
        ],
    });
    let callers = Table::new("Callers", &["Backend", "Let in", "Refused", "Why"], callers)
        .numbers(&[1, 2])
        .or_else("nobody has called yet");
    let sessions = mesh.sessions.iter().map(|sessions| Row {
        class: "",
        cells: vec![
            format!("{} {}", sessions.kind, sessions.name),
            sessions.open.to_string(),
            counted(&sessions.ended),
            words::bytes(sessions.received),
            words::bytes(sessions.sent),
        ],
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

impl Table {
    fn new(caption: impl Into<String>, head: &[&'static str], rows: impl IntoIterator<Item = Row>) -> Self {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        let more = rows.len().saturating_sub(MOST_ROWS);
        rows.truncate(MOST_ROWS);
        Self {
            caption: caption.into(),
            head: head.to_vec(),
            numbers: vec![false; head.len()],
            rows,
            note: (more > 0).then(|| format!("and {more} more")),
        }
    }

    fn numbers(mut self, columns: &[usize]) -> Self {
        columns.iter().for_each(|column| self.numbers[*column] = true);
        self
    }

    /// What is said where there are no rows.
    fn or_else(mut self, note: &str) -> Self {
        if self.rows.is_empty() {
            self.note = Some(note.to_owned());
        }
        self
    }
}
