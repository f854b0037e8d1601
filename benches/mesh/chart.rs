//! What came out, as one picture.

use crate::compare::{Comparison, Line};
use crate::load::Sample;
use crate::shared::chart::{self, Panel};

/// SVG.
pub(crate) fn of(comparisons: &[Comparison]) -> String {
    let first = ["outbound", "chain", "bodies", "connections"]
        .iter()
        .find_map(|id| comparisons.iter().find(|comparison| comparison.id == *id));
    let peers = first.map_or(&[][..], |first| &first.peers);
    let peers: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    chart::of(
        "dstack-vpc beside nginx and haproxy",
        &peers,
        &panels(comparisons),
    )
}

fn panels(comparisons: &[Comparison]) -> Vec<Panel> {
    type Figure = fn(&Line, &Sample) -> f64;
    type Takes = fn(&Line) -> bool;
    let any: Takes = |_| true;
    let large: Takes = |line| line.load.size > 1 << 20;
    let wanted: [(&str, &str, Takes, Figure); 6] = [
        (
            "outbound",
            "Outbound hop: CPU µs a request (less is better)",
            any,
            |_, s| s.cpu[0],
        ),
        (
            "outbound",
            "Outbound hop: thousand requests a second",
            any,
            |_, s| s.requests / 1e3,
        ),
        (
            "outbound",
            "Outbound hop: p99 in ms (less is better)",
            any,
            |_, s| s.p99 / 1e3,
        ),
        ("chain", "Whole chain: thousand requests a second", any, |_, s| {
            s.requests / 1e3
        }),
        ("bodies", "10 MiB bodies: MB a second", large, |line, s| {
            s.requests * line.load.size as f64 / 1e6
        }),
        ("connections", "New TLS connections a second", any, |_, s| {
            s.requests
        }),
    ];
    let panels = wanted.into_iter().filter_map(|(id, title, takes, figure)| {
        let comparison = comparisons.iter().find(|comparison| comparison.id == id)?;
        let peers = 0..comparison.peers.len();
        let bars = |line: &Line| {
            let bars = peers
                .clone()
                .map(|peer| line.of(peer, |sample| figure(line, sample)));
            let name = line.name.split(',').next().unwrap_or_default();
            (name.to_owned(), bars.collect())
        };
        let groups = comparison.lines.iter().filter(|line| takes(line)).map(bars);
        Some(Panel {
            title,
            groups: groups.collect(),
        })
    });
    panels.collect()
}
