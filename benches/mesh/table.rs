//! What came out, as Markdown.

use std::fmt::Write as _;

use crate::compare::{Comparison, Line};
use crate::load::Sample;
use crate::shared::proc::mebibytes;
use crate::shared::targets::{heads, row};

/// A row for each load and peer.
pub(crate) fn of(comparison: &Comparison) -> String {
    let parts = &comparison.peers[0].parts;
    let has_size = comparison.lines.iter().any(|line| line.load.size > 0);
    let reference = comparison.peers[comparison.reference()].name;
    let mut columns = vec!["connections".to_owned(), String::new(), "req/s".to_owned()];
    if has_size {
        columns.push("MB/s".to_owned());
    }
    columns.extend(["p50 ms", "p99 ms", "p99.9 ms"].map(str::to_owned));
    columns.extend(parts.iter().map(|part| format!("{} µs/req", part.name)));
    columns.push(format!("÷ {reference}: req/s, p99, CPU"));
    columns.push("RSS (peak) MiB".to_owned());
    if counts(comparison) {
        columns.push("TLS connections made".to_owned());
    }
    columns.push("errors".to_owned());

    let mut text = format!("## {}\n\n{}\n\n", comparison.title, comparison.about);
    text += &heads(&columns);
    for line in &comparison.lines {
        for peer in 0..comparison.peers.len() {
            row(&mut text, &cells(comparison, line, peer, has_size));
        }
    }
    for note in &comparison.notes {
        let _ = write!(text, "\n{note}");
    }
    text + if comparison.notes.is_empty() { "" } else { "\n" }
}

fn cells(comparison: &Comparison, line: &Line, peer: usize, has_size: bool) -> Vec<String> {
    let of = |figure: fn(&Sample) -> f64| line.of(peer, figure);
    let ms = |micros: f64| format!("{:.2}", micros / 1e3);
    let mut cells = vec![
        line.name.clone(),
        comparison.peers[peer].name.to_owned(),
        format!("{:.0}", of(|s| s.requests)),
    ];
    if has_size {
        cells.push(format!("{:.0}", of(|s| s.requests) * line.load.size as f64 / 1e6));
    }
    cells.extend([of(|s| s.p50), of(|s| s.p99), of(|s| s.p999)].map(ms));
    for (at, part) in comparison.peers[peer].parts.iter().enumerate() {
        cells.push(match part.pids.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.1}", line.of(peer, |s| s.cpu[at])),
        });
    }
    let reference = comparison.reference();
    cells.push(match peer == reference {
        true => "1".to_owned(),
        false => {
            let ratio = |figure: fn(&Sample) -> f64| line.ratio(peer, reference, figure);
            format!(
                "{:.2}, {:.2}, **{:.2}**",
                ratio(|s| s.requests),
                ratio(|s| s.p99),
                ratio(|s| s.cpu[0])
            )
        }
    });
    cells.push(format!("{} ({})", mib(of(|s| s.resident)), mib(of(|s| s.peak))));
    if counts(comparison) {
        cells.push(format!("{:.0}", of(|s| s.connects)));
    }
    cells.push(line.errors(peer).to_string());
    cells
}

fn counts(comparison: &Comparison) -> bool {
    comparison
        .lines
        .iter()
        .any(|line| line.of(0, |s| s.connects).is_finite())
}

pub(crate) fn mib(bytes: f64) -> String {
    format!("{:.0}", mebibytes(bytes))
}
