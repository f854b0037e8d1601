//! What came out, as Markdown.

use std::fmt::Write as _;

use crate::load::Sample;
use crate::scene::Scene;

/// A row for each load and peer.
pub(crate) fn of(scene: &Scene) -> String {
    let mut text = format!("### {}\n\n", scene.title);
    text += "| connections | | req/s | p50 ms | p99 ms | p99.9 ms | CPU µs/req |";
    let parts = &scene.peers[0].parts;
    for part in &parts[1..] {
        let _ = write!(text, " {} µs/req |", part.name);
    }
    text += " RSS (peak) MiB | errors |\n|---|---|---|---|---|---|---|";
    text += &"---|".repeat(parts.len() + 1);
    text.push('\n');
    for line in &scene.lines {
        for (peer, sample) in scene.peers.iter().zip(&line.samples) {
            let _ = writeln!(text, "| {} | {} | {}", line.load, peer.name, row(sample));
        }
    }
    text
}

fn row(sample: &Sample) -> String {
    let ms = |micros: f64| micros / 1e3;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let mut text = format!(
        "{:.0} | {:.2} | {:.2} | {:.2} |",
        sample.requests,
        ms(sample.p50),
        ms(sample.p99),
        ms(sample.p999)
    );
    for cpu in &sample.cpu {
        let _ = write!(text, " {cpu:.1} |");
    }
    let _ = write!(
        text,
        " {:.0} ({:.0}) | {} |",
        mib(sample.resident),
        mib(sample.peak),
        sample.errors
    );
    text
}
