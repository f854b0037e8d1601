//! Everything at once for a long time, and whether it costs more and more: `make soak`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::common::machine::Machine;
use crate::load::{Load, Sample, median};
use crate::peers::{self, Answers, Part, Peer};
use crate::shared::proc;
use crate::stage::Stage;

/// How often each kind of load has its turn.
const TURNS: u32 = 12;
/// What one kind of load was like, each time.
struct Kind {
    name: &'static str,
    load: Load,
    turns: Vec<Turn>,
}

struct Turn {
    sample: Sample,
    /// Of both daemons, at the end of the turn.
    resident: Vec<f64>,
    descriptors: Vec<f64>,
}

/// Fails when memory, descriptors or latency of the last third are above those of the one before. In the first,
/// pools and heaps find their size.
pub(crate) async fn run(stage: &Stage, long: Duration) -> Result<()> {
    let backend = Answers::start(&stage.files).await?;
    let server = stage.serving(backend.plain.addr()).await?;
    let client = stage.calling(server.ports.https.addr()).await?;
    let daemons = [Part::daemon("proxy", &client), Part::daemon("auth", &server)];
    let peer = entered_at(&client, &daemons);
    let mut kinds = kinds();
    let scratch = peers::directory()?;
    println!(
        "| s | load | req/s | p50 ms | p99 ms | proxy µs/req | auth µs/req | proxy RSS KiB, fds | auth RSS KiB, fds | errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let turn = (long / TURNS / kinds.len() as u32).max(Duration::from_secs(1));
    let began = Instant::now();
    for _ in 0..TURNS {
        for kind in &mut kinds {
            let sample = kind.load.run(&peer, turn, None, scratch.path())?;
            let turn = Turn {
                resident: each(&daemons, proc::resident),
                descriptors: each(&daemons, proc::descriptors),
                sample,
            };
            println!("{}", turn.row(began.elapsed(), kind.name));
            kind.turns.push(turn);
        }
    }
    let complaints: Vec<_> = kinds.iter().flat_map(Kind::complaints).collect();
    match complaints.is_empty() {
        true => {
            println!("\nNothing grew in {} minutes.", began.elapsed().as_secs() / 60);
            Ok(())
        }
        false => bail!("{}", complaints.join("\n")),
    }
}

fn entered_at(client: &Machine, daemons: &[Part; 2]) -> Peer {
    Peer {
        name: "the whole chain",
        addr: client.ports.client.addr(),
        parts: daemons.to_vec(),
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |name, load| Kind {
        name,
        load,
        turns: Vec::new(),
    };
    let closing = |mut load: Load| {
        load.headers[0].push(("Connection", "close".to_owned()));
        load
    };
    let body = |connections, path: &str, size, upload| Load {
        path: path.to_owned(),
        size,
        upload,
        ..Load::get(connections)
    };
    vec![
        kind("64 connections", Load::get(64)),
        kind("a connection each", closing(Load::get(64))),
        kind("64 KiB up", body(64, "/upload", 64 << 10, true)),
        kind("10 MiB down", body(8, "/files/10485760", 10 << 20, false)),
        kind("512 connections", Load::get(512)),
    ]
}

fn each(daemons: &[Part], figure: fn(&[i32]) -> u64) -> Vec<f64> {
    daemons.iter().map(|part| figure(&part.pids) as f64).collect()
}

impl Turn {
    fn row(&self, at: Duration, name: &str) -> String {
        let s = &self.sample;
        let daemon = |which: usize| format!("{}, {}", self.resident[which] / 1024.0, self.descriptors[which]);
        format!(
            "| {} | {name} | {:.0} | {:.2} | {:.2} | {:.1} | {:.1} | {} | {} | {} |",
            at.as_secs(),
            s.requests,
            s.p50 / 1e3,
            s.p99 / 1e3,
            s.cpu[0],
            s.cpu[1],
            daemon(0),
            daemon(1),
            s.errors
        )
    }
}

impl Kind {
    /// What is worse in the last third than in the one before, in sentences.
    fn complaints(&self) -> Vec<String> {
        let third = self.turns.len() / 3;
        let (earlier, last) = self.turns.split_at(self.turns.len() - third);
        let before = &earlier[earlier.len() - third..];
        let mut complaints = Vec::new();
        for Watched {
            what,
            allowed,
            slack,
            figure,
        } in WATCHED
        {
            let (before, after) = (median(before.iter().map(figure)), median(last.iter().map(figure)));
            if after > (before * allowed).max(before + slack) {
                complaints.push(format!(
                    "{}: {what} grew from {before:.0} to {after:.0}",
                    self.name
                ));
            }
        }
        let errors: u64 = self.turns.iter().map(|turn| turn.sample.errors).sum();
        if errors > 0 {
            complaints.push(format!("{}: {errors} requests failed", self.name));
        }
        complaints
    }
}

/// A figure that may not grow.
struct Watched {
    what: &'static str,
    /// It may become so many times as large, or larger by the slack.
    allowed: f64,
    slack: f64,
    figure: fn(&Turn) -> f64,
}

/// By this much anything may differ: heaps and pools are as full as the last burst of 512 connections left them. What
/// leaks with each request or connection is past it within seconds.
const SLACK_BYTES: f64 = (8 << 20) as f64;
const SLACK_DESCRIPTORS: f64 = 1024.0;

#[rustfmt::skip]
const WATCHED: [Watched; 5] = [
    watched("memory of the proxy (bytes)", 1.05, SLACK_BYTES, |turn| turn.resident[0]),
    watched("memory of the auth service (bytes)", 1.05, SLACK_BYTES, |turn| turn.resident[1]),
    watched("descriptors of the proxy", 1.1, SLACK_DESCRIPTORS, |turn| turn.descriptors[0]),
    watched("descriptors of the auth service", 1.1, SLACK_DESCRIPTORS, |turn| turn.descriptors[1]),
    watched("p50 (µs)", 2.0, 500.0, |turn| turn.sample.p50),
];

const fn watched(what: &'static str, allowed: f64, slack: f64, figure: fn(&Turn) -> f64) -> Watched {
    Watched {
        what,
        allowed,
        slack,
        figure,
    }
}
