//! The mesh against nginx, haproxy and ghostunnel, on this computer: `make bench`, or `BENCH=quick make bench` while tuning.
//!
//! Everybody does the same work in the same run, taking turns, so that what else the computer does hits all alike.
//! Arguments choose comparisons by name: `cargo bench --profile dev --bench mesh -- outbound chain`. All of them at full
//! length are written to `docs/benchmarks.md` and `docs/benchmarks.svg`; whatever was measured, to the folder in
//! `BENCH_DOCS`. `BENCH_BINARY` names another dstack-vpc to be measured, `BENCH_BEFORE` one to compare it with.
//! `-- soak` runs for `SOAK_MINUTES`.

mod callers;
mod chart;
#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
mod compare;
mod idle;
mod load;
mod peers;
mod report;
mod scenes;
#[path = "../shared/mod.rs"]
#[allow(dead_code)]
mod shared;
mod soak;
mod stage;
mod streams;
mod table;
mod targets;
mod turns;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use compare::Pace;
use report::Report;
use shared::parts;
use stage::Stage;

const NAMES: [&str; 13] = [
    "crowd",
    "outbound",
    "chain",
    "entrance",
    "front",
    "fronts",
    "auth",
    "auth-in-place",
    "bodies",
    "connections",
    "tcp",
    "newcomers",
    "idle",
];

#[tokio::main]
async fn main() -> ExitCode {
    parts::run(run()).await
}

async fn run() -> Result<()> {
    let chosen = parts::arguments();
    let stage = Stage::set().await?;
    if chosen == ["soak"] {
        let minutes = std::env::var("SOAK_MINUTES").unwrap_or_else(|_| "10".to_owned());
        let minutes: u64 = minutes.parse().context("SOAK_MINUTES is a number")?;
        return soak::run(&stage, Duration::from_secs(60 * minutes)).await;
    }
    let pace = match std::env::var("BENCH").as_deref() {
        Ok("quick") => Pace::QUICK,
        Ok("full") | Err(_) => Pace::FULL,
        Ok(other) => anyhow::bail!("BENCH is quick or full, not {other}"),
    };
    let wanted = parts::wanted(&NAMES, &chosen)?;
    let mut report = Report::default();
    for name in wanted {
        let comparison = match name {
            "crowd" => {
                let (comparison, idle) = scenes::crowd(&stage, pace).await?;
                report.add_crowd(comparison, idle);
                continue;
            }
            "tcp" => {
                report.add_page(streams::throughput(&stage, pace).await?);
                continue;
            }
            "newcomers" => {
                report.add_page(callers::newcomers(&stage, pace).await?);
                continue;
            }
            "idle" => {
                report.add_page(idle::peers(&stage).await?);
                continue;
            }
            "outbound" => scenes::outbound(&stage, pace).await?,
            "chain" => scenes::chain(&stage, pace).await?,
            "entrance" => scenes::entrance(&stage, pace).await?,
            "front" => scenes::front(&stage, pace).await?,
            "fronts" => scenes::fronts(&stage, pace).await?,
            "auth" => scenes::auth(&stage, pace).await?,
            "auth-in-place" => scenes::auth_in_place(&stage, pace).await?,
            "bodies" => scenes::bodies(&stage, pace).await?,
            _ => scenes::connections(&stage, pace).await?,
        };
        report.add(comparison);
    }
    report.judge();
    report.write(pace, chosen.is_empty() && pace.full)
}
