//! The VPN's part of `status`.

use jiff::Timestamp;

use super::super::out::wrapped;
use super::text::{BAD, GOOD, row};
use crate::api::ApiStatus;
use crate::node::{NodeStatus, Path, Peer, Step};
use crate::words;

const WIDTH: usize = 80;
/// Where the values of `status` begin.
const VALUES: usize = 19;

/// This machine as a node, with `most` lines for its peers.
pub(super) fn node(out: &mut String, node: &NodeStatus, most: usize, now: Timestamp) -> std::fmt::Result {
    let step = node.step.words();
    match (&node.problem, node.step) {
        (None, Step::Joined) => row(out, "vpn", &format!("{GOOD}joined{GOOD:#}{}", since(node, now)))?,
        (None, _) => row(out, "vpn", &format!("{step}{}", since(node, now)))?,
        (Some(problem), _) => {
            row(out, "vpn", &format!("{BAD}{step}{BAD:#}{}", since(node, now)))?;
            *out += &wrapped(problem, VALUES, WIDTH);
        }
    }
    let wait = node.retry_at.map(|retry| (retry - now).total(jiff::Unit::Second));
    if let Some(Ok(wait @ 0.0..)) = wait {
        row(out, "", &format!("tried again in {}s", wait.ceil()))?;
    }
    if let Some(address) = node.address {
        let name = node.dns_name.as_deref().unwrap_or("no name yet");
        row(out, "vpn address", &format!("{address}, {name}"))?;
    }
    if let Some(announced) = node.announced {
        row(out, "announced", &format!("{} ago", words::since(announced, now)))?;
    }
    if !node.in_vpn() {
        return Ok(());
    }
    let online = node.peers.iter().filter(|peer| peer.online).count();
    row(out, "peers", &format!("{online} of {} online", node.peers.len()))?;
    // Those that can be reached first; both parts in the order of their names.
    let (there, away): (Vec<_>, Vec<_>) = node.peers.iter().partition(|peer| peer.online);
    // The last line may have to count those that have none.
    let shown = if node.peers.len() > most {
        most.saturating_sub(1)
    } else {
        most
    };
    for peer in there.iter().chain(&away).take(shown) {
        row(out, "", &path(peer))?;
    }
    match node.peers.len().saturating_sub(shown) {
        more @ 1.. if most > 0 => row(out, "", &format!("and {more} more")),
        _ => Ok(()),
    }
}

/// The VPC API.
pub(super) fn server(out: &mut String, api: &ApiStatus) -> std::fmt::Result {
    match api.problems.as_slice() {
        [] => row(
            out,
            "vpc api",
            &format!("{GOOD}nodes can register and be found{GOOD:#}"),
        )?,
        problems => {
            row(out, "vpc api", &format!("{BAD}not as it should be{BAD:#}"))?;
            problems
                .iter()
                .for_each(|problem| *out += &wrapped(problem, VALUES, WIDTH));
        }
    }
    row(out, "nodes", &format!("{}, {} present", api.nodes, api.present))
}

fn since(node: &NodeStatus, now: Timestamp) -> String {
    node.since.map_or(String::new(), |since| {
        format!(", for {}", words::since(since, now))
    })
}

fn path(peer: &Peer) -> String {
    let address = peer.address.map_or("-".to_owned(), |address| address.to_string());
    let path = match (&peer.path, peer.online) {
        (_, false) => "offline".to_owned(),
        (Path::Idle, true) => "idle".to_owned(),
        (Path::Direct(to), true) => format!("direct, {to}"),
        (Path::Relayed(relay), true) => format!("relayed by {relay}"),
    };
    format!("{:<16} {address:<15} {path}", peer.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn plain(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
        let mut text = String::new();
        write(&mut text).unwrap();
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(plain.lines().all(|line| line.chars().count() <= WIDTH), "{plain}");
        plain
    }

    #[test]
    fn a_node_in_the_vpn_and_its_peers() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let before = |seconds| Some(now - SignedDuration::from_secs(seconds));
        let peer = |number: u8, online, path| Peer {
            name: format!("db-{number}"),
            address: Some([100, 128, 0, number].into()),
            online,
            path,
        };
        let mut peers = vec![
            peer(1, false, Path::Idle),
            peer(2, true, Path::Direct("10.0.0.2:41641".to_owned())),
            peer(3, true, Path::Relayed("headscale".to_owned())),
        ];
        peers.extend((4..12).map(|number| peer(number, true, Path::Idle)));
        let joined = NodeStatus {
            step: Step::Joined,
            since: before(7300),
            address: Some([100, 128, 0, 9].into()),
            dns_name: Some("web-1.dstack.internal".to_owned()),
            announced: before(12),
            peers,
            ..NodeStatus::default()
        };
        insta::assert_snapshot!(plain(|out| node(out, &joined, 9, now)), @r"
        vpn              joined, for 2 h
        vpn address      100.128.0.9, web-1.dstack.internal
        announced        12s ago
        peers            10 of 11 online
                         db-2             100.128.0.2     direct, 10.0.0.2:41641
                         db-3             100.128.0.3     relayed by headscale
                         db-4             100.128.0.4     idle
                         db-5             100.128.0.5     idle
                         db-6             100.128.0.6     idle
                         db-7             100.128.0.7     idle
                         db-8             100.128.0.8     idle
                         db-9             100.128.0.9     idle
                         and 3 more
        ");
    }

    #[test]
    fn a_node_that_waits_says_for_what_and_why() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let waits = NodeStatus {
            step: Step::Register,
            since: Some(now - SignedDuration::from_secs(30)),
            problem: Some("the VPC server did not answer: the connection was refused by the other side, and it is tried again".to_owned()),
            retry_at: Some(now + SignedDuration::from_millis(4200)),
            ..NodeStatus::default()
        };
        insta::assert_snapshot!(plain(|out| node(out, &waits, 9, now)), @r"
        vpn              registering with the VPC server, for 30s
                         the VPC server did not answer: the connection was refused by
                         the other side, and it is tried again
                         tried again in 5s
        ");
    }

    #[test]
    fn a_server_that_is_well_and_one_that_is_not() {
        let well = ApiStatus {
            problems: Vec::new(),
            nodes: 3,
            present: 2,
        };
        let unwell = ApiStatus {
            problems: vec!["the registry cannot be opened: it is damaged".to_owned()],
            ..ApiStatus::default()
        };
        insta::assert_snapshot!(plain(|out| server(out, &well)), @r"
        vpc api          nodes can register and be found
        nodes            3, 2 present
        ");
        insta::assert_snapshot!(plain(|out| server(out, &unwell)), @r"
        vpc api          not as it should be
                         the registry cannot be opened: it is damaged
        nodes            0, 0 present
        ");
    }
}
