//! What is aimed at in the comparisons.

use crate::compare::Comparison;
use crate::load::Sample;
use crate::scenes::{ENTRANCE, SIZES, UNKEPT};
use crate::shared::proc::mebibytes;
use crate::shared::targets::Limit::{AtLeast, AtMost};
use crate::shared::targets::Target;
use crate::stage::OURS;

/// All that follow from these comparisons.
pub(crate) fn of(comparisons: &[Comparison], idle: Option<u64>) -> Vec<Target> {
    let mut targets = Vec::new();
    for comparison in comparisons {
        match comparison.id {
            "outbound" => outbound(comparison, &mut targets),
            "chain" => chain(comparison, &mut targets),
            "entrance" => entrance(comparison, &mut targets),
            "front" => front(comparison, &mut targets),
            "fronts" => fronts(comparison, &mut targets),
            "bodies" => bodies(comparison, &mut targets),
            "auth" | "auth in place" => auth(comparison, &mut targets),
            "crowd" => crowd(comparison, idle, &mut targets),
            _ => {}
        }
    }
    targets
}

const RATIO: &str = " × nginx";

/// Those of the lines with 16 connections and more.
fn of_nginx<'c>(
    comparison: &'c Comparison,
    figure: impl Fn(&Sample) -> f64 + Copy + 'c,
) -> impl Iterator<Item = (&'c str, f64)> {
    of_peer(comparison, "nginx", figure)
}

fn of_peer<'c>(
    comparison: &'c Comparison,
    peer: &str,
    figure: impl Fn(&Sample) -> f64 + Copy + 'c,
) -> impl Iterator<Item = (&'c str, f64)> {
    let places = comparison.place(OURS).zip(comparison.place(peer));
    let lines = comparison.lines.iter().filter(|line| line.name != "1");
    lines.filter_map(move |line| {
        let (ours, theirs) = places?;
        Some((line.name.as_str(), line.ratio(ours, theirs, figure)))
    })
}

fn outbound(comparison: &Comparison, targets: &mut Vec<Target>) {
    for (line, ratio) in of_nginx(comparison, |s| s.cpu[0]) {
        targets.push(Target::new(
            format!("outbound, {line}: CPU per request"),
            AtMost(1.0, RATIO),
            ratio,
        ));
    }
    for (line, ratio) in of_nginx(comparison, |s| s.requests) {
        targets.push(Target::new(
            format!("outbound, {line}: req/s"),
            AtLeast(1.0, RATIO),
            ratio,
        ));
    }
    for (line, ratio) in of_nginx(comparison, |s| s.p99) {
        targets.push(Target::new(
            format!("outbound, {line}: p99"),
            AtMost(1.0, RATIO),
            ratio,
        ));
    }
}

fn chain(comparison: &Comparison, targets: &mut Vec<Target>) {
    for (line, ratio) in of_nginx(comparison, |s| s.requests) {
        targets.push(Target::new(
            format!("whole chain, {line}: req/s"),
            AtLeast(0.95, RATIO),
            ratio,
        ));
    }
}

/// What port 80 adds to the proxy's own cost is its nginx, which must cost no more than an nginx that does the hop.
fn entrance(comparison: &Comparison, targets: &mut Vec<Target>) {
    let Some((ours, nginx)) = comparison.place(ENTRANCE).zip(comparison.place("nginx")) else {
        return;
    };
    for line in &comparison.lines {
        let added = line.in_rounds(|of| of(ours).cpu[1] / of(nginx).cpu[0]);
        let what = format!("port 80, {}: CPU it adds", line.name);
        targets.push(Target::new(what, AtMost(1.0, RATIO), added));
        let what = format!("port 80, {}: TLS connections made in a run", line.name);
        targets.push(Target::new(
            what,
            AtMost(line.load.connections as f64, ""),
            line.of(ours, |s| s.connects),
        ));
    }
}

fn front(comparison: &Comparison, targets: &mut Vec<Target>) {
    for (line, ratio) in of_nginx(comparison, |s| s.cpu[0]) {
        let what = format!("built-in front, {line}: CPU per request");
        targets.push(Target::new(what, AtMost(1.0, RATIO), ratio));
    }
}

fn fronts(comparison: &Comparison, targets: &mut Vec<Target>) {
    for (peer, unit) in [("nginx", RATIO), (UNKEPT, " × nginx that keeps nothing")] {
        for (line, ratio) in of_peer(comparison, peer, |s| s.requests) {
            let what = format!("built-in fronts on both sides, {line}: req/s");
            targets.push(Target::new(what, AtLeast(3.0, unit), ratio));
        }
        for (line, ratio) in of_peer(comparison, peer, |s| s.cpu[0] + s.cpu[1]) {
            let what = format!("built-in fronts on both sides, {line}: CPU per request");
            targets.push(Target::new(what, AtMost(0.25, unit), ratio));
        }
    }
}

fn bodies(comparison: &Comparison, targets: &mut Vec<Target>) {
    for (line, ratio) in of_nginx(comparison, |s| s.requests).filter(|(line, _)| line.contains("10 MiB")) {
        targets.push(Target::new(format!("{line}: MB/s"), AtLeast(1.0, RATIO), ratio));
    }
    let Some(ours) = comparison.place(OURS) else {
        return;
    };
    let most = |size| {
        let lines = comparison.lines.iter().filter(|line| line.load.size == size);
        lines
            .map(|line| line.of(ours, |s| s.peak))
            .fold(f64::NAN, f64::max)
    };
    let [small, .., large] = SIZES.map(most);
    if small.is_finite() {
        let what = "10 MiB bodies: memory beyond that for 1 KiB";
        targets.push(Target::new(what, AtMost(8.0, " MiB"), mebibytes(large - small)));
    }
}

fn auth(comparison: &Comparison, targets: &mut Vec<Target>) {
    let Some(ours) = comparison.place(OURS) else {
        return;
    };
    let place = if comparison.id == "auth" {
        "alone"
    } else {
        "in the chain"
    };
    for line in &comparison.lines {
        let what = format!("auth service {place}, {}: CPU per request", line.name);
        targets.push(Target::new(
            what,
            AtMost(20.0, " µs"),
            line.of(ours, |s| s.cpu[0]),
        ));
    }
}

fn crowd(comparison: &Comparison, idle: Option<u64>, targets: &mut Vec<Target>) {
    if let Some(idle) = idle {
        targets.push(Target::new(
            "memory when idle",
            AtMost(25.0, " MiB"),
            mebibytes(idle as f64),
        ));
    }
    if let Some((line, ours)) = comparison.lines.first().zip(comparison.place(OURS)) {
        let peak = mebibytes(line.of(ours, |s| s.peak));
        targets.push(Target::new(
            "memory with 1,000 busy connections",
            AtMost(64.0, " MiB"),
            peak,
        ));
    }
}
