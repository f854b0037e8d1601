//! What a reconcile costs, on this computer: `make bench-reconcile`, and `make edits` for ten thousand in a row.
//!
//! A real machine is edited: real supervisord, real nginx. Beside it, in the same run, nginx is reloaded by hand, and
//! consul-template and confd render the same file and reload their nginx. Arguments choose parts by name:
//! `cargo bench --profile dev --bench reconcile -- in-place scale`. All of them are written to
//! `docs/benchmarks-reconcile.md`; whatever was measured, to the folder in `BENCH_DOCS`. `BENCH_BINARY` names another
//! dstack-vpc to be measured.

mod alone;
mod apps;
#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
mod edits;
mod idle;
mod many;
mod measure;
mod page;
mod rivals;
mod scale;
#[path = "../shared/mod.rs"]
#[allow(dead_code)]
mod shared;
mod site;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use page::Page;
use site::Stage;

const PARTS: [&str; 6] = ["in-place", "backend", "scale", "apps", "idle", "edits"];

#[tokio::main]
async fn main() -> ExitCode {
    // Whichever way it ends, what was started ends with it.
    let outcome = tokio::select! {
        outcome = run() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let chosen: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    for name in &chosen {
        ensure!(PARTS.contains(&name.as_str()), "{name} is none of {PARTS:?}");
    }
    let many = std::env::var("EDITS").unwrap_or_else(|_| "10000".to_owned());
    let many = many.parse().context("EDITS is a number")?;
    let stage = Stage::set().await;
    let mut page = Page::default();
    let mut outcome = Ok(());
    for name in PARTS
        .into_iter()
        .filter(|name| chosen.is_empty() || chosen.iter().any(|c| c == name))
    {
        match name {
            "in-place" => edits::in_place(&mut page, &stage).await?,
            "backend" => edits::backend(&mut page, &stage).await?,
            "scale" => scale::run(&mut page, &stage).await?,
            "apps" => apps::run(&mut page, &stage).await?,
            "idle" => idle::run(&mut page, &stage).await?,
            _ => outcome = many::run(&mut page, &stage, many).await,
        }
    }
    page.judge();
    if let Some(docs) = std::env::var_os("BENCH_DOCS") {
        page.write(docs.as_ref())?;
    } else if chosen.is_empty() {
        page.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"))?;
    }
    outcome
}
