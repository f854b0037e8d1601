//! One edit, or none, on a machine with a few backends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::alone::Alone;
use crate::common::process::Traces;
use crate::measure::{Times, ms};
use crate::page::Page;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Kept, Stage};

const BACKENDS: usize = 10;
const ROUNDS: usize = 30;

/// Nothing to do, and who may call.
pub(crate) async fn in_place(page: &mut Page, stage: &Stage) -> Result<()> {
    let mut file = File {
        apps: Some(1),
        ..File::new(BACKENDS)
    };
    let (site, _) = stage.site(file.clone()).await?;
    let mut nothing = Times::default();
    let before = Traces::of(&site.machine.processes());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let answer = site.ask().await?;
        nothing.add(begin.elapsed());
        ensure!(answer["changed"] == false, "{answer}");
    }
    let quiet = before == Traces::of(&site.machine.processes());

    let mut kept = Kept::open(stage, site.https()).await?;
    let mut rows = vec![row("nothing to do", &nothing)];
    let mut still = true;
    for debounce in ["50ms", "1ms"] {
        file.debounce = debounce;
        site.edit(stage, &file, async || true).await?;
        let (mut seen, mut verified) = (Times::default(), Times::default());
        let before = Traces::of(&site.machine.processes());
        for _ in 0..ROUNDS {
            file.caller_may = !file.caller_may;
            let wanted = if file.caller_may { 200 } else { 403 };
            let took = site.edit(stage, &file, async || kept.gets(wanted).await).await?;
            seen.add(took.seen);
            verified.add(took.verified);
        }
        still &= before == Traces::of(&site.machine.processes());
        rows.push(row(
            &format!("allow-list, debounce {debounce}: first call judged by it"),
            &seen,
        ));
        rows.push(row(
            &format!("allow-list, debounce {debounce}: on disk and told by `status`"),
            &verified,
        ));
        page.target(Target::new(
            format!("allow-list to first call judged by it, debounce {debounce}"),
            AtMost(10.0, " ms"),
            seen.median(),
        ));
    }
    page.target(Target::new(
        "reconcile with nothing to do",
        AtMost(5.0, " ms"),
        nothing.median(),
    ));
    page.target(Target::new(
        "processes started by those reconciles",
        AtMost(0.0, ""),
        f64::from(u8::from(!quiet)),
    ));
    page.target(Target::new(
        "processes started by those allow-list edits (a reload is some)",
        AtMost(0.0, ""),
        f64::from(u8::from(!still)),
    ));
    page.section(
        "Nothing to do, and who may call",
        &format!(
            "{BACKENDS} backends. The first line is `dstack-vpc apply` as the daemon's socket sees it: asked, looked at everything, answered. \
             That no process is started is seen by what the kernel keeps of ended children in every process of the machine."
        ),
        &["", "median ms", "p95", "most", "runs"],
        &rows,
    );
    Ok(())
}

fn row(what: &str, times: &Times) -> Vec<String> {
    [vec![what.to_owned()], times.cells().to_vec()].concat()
}

/// One backend moves to another server, beside nginx alone.
pub(crate) async fn backend(page: &mut Page, stage: &Stage) -> Result<()> {
    let mut file = File::new(BACKENDS);
    let (site, _) = stage.site(file.clone()).await?;
    let alone = Alone::start(stage, &site).await?;
    let mut times: [Times; 6] = Default::default();
    for _ in 0..2 * ROUNDS {
        file.moved = !file.moved;
        let took = site.move_first(stage, &file).await?;
        let status = site.machine.status().await.context("a status")?;
        let last = status.history.last().context("a history")?;
        let parts = [last.stage_ms, last.act_ms].map(Duration::from_millis);
        let bare = alone.edit(stage, file.moved).await?;
        let all = [
            took.seen,
            took.verified,
            bare.seen,
            bare.verified,
            parts[0],
            parts[1],
        ];
        for (times, took) in times.iter_mut().zip(all) {
            times.add(took);
        }
    }
    let [seen, verified, bare_seen, bare, stage_ms, act_ms] = &times;
    page.target(Target::new(
        "one backend to verified live, beyond nginx's own reload",
        AtMost(30.0, " ms"),
        verified.median() - bare.median(),
    ));
    page.target(Target::new(
        "one backend to its first answer, beyond nginx's own",
        AtMost(30.0, " ms"),
        seen.median() - bare_seen.median(),
    ));
    page.section(
        "One backend",
        &format!(
            "{BACKENDS} backends, of which one moves to another server. *Verified* is when no worker of the old configuration accepts \
             connections any more: dstack-vpc says so itself, for nginx alone the harness looks. Of the median edit, {} ms went into \
             rendering, writing durably and `nginx -t`, {} ms into the reload and its proof.",
            ms(stage_ms.median()),
            ms(act_ms.median())
        ),
        &["", "median ms", "p95", "most", "runs"],
        &[
            row("first new answer", seen),
            row("verified", verified),
            row("nginx alone: first new answer", bare_seen),
            row("nginx alone: no old worker left", bare),
        ],
    );
    Ok(())
}
