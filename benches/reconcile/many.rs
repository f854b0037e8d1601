//! Ten thousand edits in a row, and whether anything grows.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::measure::{Times, ms};
use crate::page::Page;
use crate::shared::proc;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Kept, Stage};

const TURNS: usize = 10;
/// So many edits of the list, then one of a backend, which reloads nginx.
const RELOAD_EVERY: usize = 50;

/// What there is after a turn.
struct Turn {
    resident: u64,
    descriptors: u64,
    disk: u64,
    median: f64,
}

pub(crate) async fn run(page: &mut Page, stage: &Stage, edits: usize) -> Result<()> {
    let mut file = File {
        apps: Some(1),
        debounce: "1ms",
        ..File::new(10)
    };
    let (site, _) = stage.site(file.clone()).await?;
    let daemon = [site.daemon()?];
    let begin = Instant::now();
    let mut turns: Vec<Turn> = Vec::new();
    let mut rows = Vec::new();
    for turn in 0..TURNS {
        let mut times = Times::default();
        let mut kept = Kept::open(stage, site.https()).await?;
        for number in 0..edits / TURNS {
            if number % RELOAD_EVERY == 0 {
                file.moved = !file.moved;
                file.caller_may = true;
                site.move_first(stage, &file).await?;
                kept = Kept::open(stage, site.https()).await?;
                continue;
            }
            file.caller_may = !file.caller_may;
            let wanted = if file.caller_may { 200 } else { 403 };
            let took = site.edit(stage, &file, async || kept.gets(wanted).await).await?;
            times.add(took.seen);
        }
        // It answers once the last of them has cleared up.
        site.ask().await?;
        let now = Turn {
            resident: proc::resident(&daemon),
            descriptors: proc::descriptors(&daemon),
            disk: site.disk(),
            median: times.median(),
        };
        eprintln!(
            "bench: {} edits after {} s",
            (turn + 1) * edits / TURNS,
            begin.elapsed().as_secs()
        );
        rows.push(vec![
            ((turn + 1) * edits / TURNS).to_string(),
            ms(now.median),
            format!("{:.1}", proc::mebibytes(now.resident as f64)),
            now.descriptors.to_string(),
            (now.disk / 1024).to_string(),
        ]);
        turns.push(now);
    }
    page.section(
        &format!("{edits} edits in a row"),
        &format!(
            "Each changes who may call and is waited for; one in {RELOAD_EVERY} moves a backend, with a reload and its proof. After each tenth part:"
        ),
        &["edits", "median ms", "memory, MiB", "descriptors", "disk, KiB"],
        &rows,
    );
    let (half, last) = (turns.get(TURNS / 2 - 1), turns.last());
    let (half, last) = half.zip(last).context("turns")?;
    let grown = |figure: fn(&Turn) -> u64| figure(last) as f64 / figure(half) as f64;
    let all = [
        ("memory", grown(|turn| turn.resident), 1.05),
        ("descriptors", grown(|turn| turn.descriptors), 1.0),
        ("disk", grown(|turn| turn.disk), 1.05),
    ];
    for (what, ratio, most) in all {
        let what = format!("{what} after {edits} edits, beside half of them");
        page.target(Target::new(what, AtMost(most, " ×"), ratio));
    }
    match all.iter().find(|(_, ratio, most)| ratio > most) {
        Some((what, ratio, _)) => {
            bail!("{what} grew to {ratio:.2} times what it was after half of the edits")
        }
        None => Ok(()),
    }
}
