//! One edit, or none, on a machine with a few backends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::alone::Alone;
use crate::common::http::{With, get};
use crate::common::process::Traces;
use crate::measure::{Times, ms};
use crate::page::Page;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Kept, Stage, answers, host_of};

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
        let may_call = async || !status_is(&mut kept, 403).await;
        site.edit(stage, &file, may_call).await?;
        let (mut seen, mut verified) = (Times::default(), Times::default());
        let before = Traces::of(&site.machine.processes());
        for _ in 0..ROUNDS {
            file.caller_may = !file.caller_may;
            let wanted = if file.caller_may { 200 } else { 403 };
            let took = site
                .edit(stage, &file, async || status_is(&mut kept, wanted).await)
                .await?;
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
        let limit = if debounce == "1ms" { 10.0 } else { 60.0 };
        page.target(Target::new(
            format!("allow-list to first call judged by it, debounce {debounce}"),
            AtMost(limit, " ms"),
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

async fn status_is(kept: &mut Kept, wanted: u16) -> bool {
    let request = get("/").with("host", &host_of(0));
    kept.status(request).await.is_ok_and(|status| status == wanted)
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
    let (mut stage_ms, mut act_ms) = (Times::default(), Times::default());
    for (at, debounce) in ["50ms", "1ms"].into_iter().enumerate() {
        file.debounce = debounce;
        site.edit(stage, &file, async || true).await?;
        for _ in 0..ROUNDS {
            file.moved = !file.moved;
            let wanted = if file.moved { "there" } else { "here" };
            let live = async || answers(stage, site.https()).await.as_deref() == Some(wanted);
            let took = site.edit(stage, &file, live).await?;
            times[2 * at].add(took.seen);
            times[2 * at + 1].add(took.verified);
            let status = site.machine.status().await.context("a status")?;
            let last = status.history.last().context("a history")?;
            stage_ms.add(Duration::from_millis(last.stage_ms));
            act_ms.add(Duration::from_millis(last.act_ms));
            let took = alone.edit(stage, file.moved).await?;
            times[4].add(took.seen);
            times[5].add(took.verified);
        }
    }
    let [seen_50, verified_50, seen, verified, bare_seen, bare] = &times;
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
            row("debounce 1ms: first new answer", seen),
            row("debounce 1ms: verified", verified),
            row("debounce 50ms: first new answer", seen_50),
            row("debounce 50ms: verified", verified_50),
            row("nginx alone: first new answer", bare_seen),
            row("nginx alone: no old worker left", bare),
        ],
    );
    Ok(())
}
