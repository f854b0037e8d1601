//! An allow-list of 100,000 apps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;

use crate::common::http::{With, get};
use crate::common::process::Traces;
use crate::measure::{Times, ms};
use crate::page::Page;
use crate::shared::proc;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Kept, Site, Stage, name};

const APPS: usize = 100_000;
const ROUNDS: usize = 9;
const DECISIONS: usize = 5_000;

pub(crate) async fn run(page: &mut Page, stage: &Stage) -> Result<()> {
    let mut rows = Vec::new();
    let mut medians = Vec::new();
    for apps in [1, APPS] {
        let mut file = File {
            apps: Some(apps),
            debounce: "1ms",
            ..File::new(2)
        };
        let (site, _) = stage.site(file.clone()).await?;
        let mut kept = Kept::open(stage, site.https()).await?;
        let (mut seen, mut verified, mut render, mut nothing) = (
            Times::default(),
            Times::default(),
            Times::default(),
            Times::default(),
        );
        let before = Traces::of(&site.machine.processes());
        for _ in 0..ROUNDS {
            file.caller_may = !file.caller_may;
            let wanted = if file.caller_may { 200 } else { 403 };
            let took = site.edit(stage, &file, async || kept.gets(wanted).await).await?;
            seen.add(took.seen);
            verified.add(took.verified);
            let begin = Instant::now();
            site.ask().await?;
            nothing.add(begin.elapsed());
        }
        ensure!(
            before == Traces::of(&site.machine.processes()),
            "an edit of an allow-list started a process"
        );
        for _ in 0..3 {
            let begin = Instant::now();
            ensure!(site.machine.cli(&["render"]).status.success(), "render");
            render.add(begin.elapsed());
        }
        if !file.caller_may {
            file.caller_may = true;
            site.edit(stage, &file, async || true).await?;
        }
        let decision = decisions(stage, &site).await?;
        let daemon = [site.daemon()?];
        medians.push((seen.median(), decision, proc::resident(&daemon)));
        rows.push(vec![
            format!("{apps}"),
            ms(render.median()),
            ms(seen.median()),
            ms(verified.median()),
            ms(nothing.median()),
            format!("{:.1}", decision * 1e3),
            format!(
                "{:.0} ({:.0})",
                proc::mebibytes(proc::resident(&daemon) as f64),
                proc::mebibytes(proc::peak(&daemon) as f64)
            ),
        ]);
    }
    let [(_, few, _), (_, many, _)] = medians[..] else {
        unreachable!("two lists")
    };
    page.target(Target::new(
        "auth decision by a list of 100,000, beside a list of one",
        AtMost(1.3, " ×"),
        many / few,
    ));
    page.section(
        "An allow-list of 100,000 apps",
        "Medians in ms, without debounce; an edit adds or removes the caller. A decision is one request to the auth service on a kept \
         connection, the caller being on the list, with everything that HTTP takes.",
        &["apps", "`render`", "edit: first call judged by it", "edit: verified", "nothing to do", "decision, µs", "daemon's memory (peak), MiB"],
        &rows,
    );
    Ok(())
}

/// The median of one, in milliseconds.
async fn decisions(stage: &Stage, site: &Site) -> Result<f64> {
    /// As nginx does in `$ssl_client_escaped_cert`.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    let leaf = utf8_percent_encode(&stage.caller.chain_pems[0], ESCAPED).to_string();
    let stream = TcpStream::connect(site.machine.ports.auth.addr()).await?;
    stream.set_nodelay(true)?;
    let mut kept = Kept::over(TokioIo::new(stream)).await?;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..DECISIONS {
        let request = get("/auth")
            .with("host", "vpc-auth")
            .with("x-client-cert", &leaf)
            .with("x-client-verify", "SUCCESS")
            .with("x-dstack-backend", &name(0));
        let begin = Instant::now();
        let status = kept.status(request).await?;
        times.push(begin.elapsed());
        ensure!(status == 200, "{status}");
    }
    times.sort();
    Ok(times[DECISIONS / 2].as_secs_f64() * 1e3)
}
