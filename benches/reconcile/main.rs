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

use std::process::ExitCode;

use anyhow::{Context, Result};
use page::Page;
use shared::parts;
use site::Stage;

const PARTS: [&str; 6] = ["in-place", "backend", "scale", "apps", "idle", "edits"];

#[tokio::main]
async fn main() -> ExitCode {
    parts::run(run()).await
}

async fn run() -> Result<()> {
    let chosen = parts::arguments();
    let wanted = parts::wanted(&PARTS, &chosen)?;
    let many = std::env::var("EDITS").unwrap_or_else(|_| "10000".to_owned());
    let many = many.parse().context("EDITS is a number")?;
    let stage = Stage::set().await;
    let mut page = Page::default();
    let mut outcome = Ok(());
    for name in wanted {
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
    page.write(chosen.is_empty())?;
    outcome
}
