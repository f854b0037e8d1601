//! `make figures`: how long things take and what they weigh, on this computer.

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::http::{With, get};
use common::pair::Pair;
use common::{SERVER_APP, poll, process};
use hyper::Method;
use tokio::net::UnixStream;

const RUNS: usize = 30;

#[tokio::main]
async fn main() -> Result<()> {
    let binary = std::fs::metadata(common::binary())?.len();
    println!("binary: {:.1} MiB", binary as f64 / f64::from(1 << 20));

    let begin = Instant::now();
    let pair = Pair::start().await;
    println!(
        "two machines at once, start to ready: {} ms",
        begin.elapsed().as_millis()
    );
    starting(&pair).await?;
    editing(&pair).await?;
    doing_nothing(&pair).await?;
    Ok(())
}

/// A crashed machine, from the start of `up` to the first call answered.
async fn starting(pair: &Pair) -> Result<()> {
    let agent = &pair.agent;
    let mut took = Vec::new();
    for _ in 0..5 {
        let nowhere = common::ports::Port::reserve();
        let socket = agent.socket(SERVER_APP);
        let plan =
            common::machine::Plan::new(&socket, nowhere.addr(), &[("default", "_", pair.default.addr())]);
        let identity = agent.issue(SERVER_APP);
        let begin = Instant::now();
        let machine = plan.spawn();
        let answers = poll(Duration::from_secs(60), async || {
            let reply = machine
                .call_as_peer(Some(identity.clone()), get("/"))
                .await
                .ok()?;
            (reply.status == 200).then_some(())
        });
        answers.await.with_context(|| machine.logs())?;
        took.push(begin.elapsed());
    }
    report("start of `up` to the first call answered", took);
    Ok(())
}

/// Renaming a backend's Host, from the rename of `vpc.toml` to the first answer of the new backend.
async fn editing(pair: &Pair) -> Result<()> {
    let (mut seen, mut ours, mut act) = (Vec::new(), Vec::new(), Vec::new());
    let text = std::fs::read_to_string(&pair.server.config)?;
    for run in 0..RUNS {
        let host = format!("edit-{run}.local");
        let saved = pair
            .server
            .save(|_| text.replace(common::pair::REPORTS, &host))
            .await;
        let live = poll(Duration::from_secs(20), async || {
            let call = get("/").with("host", &host);
            (pair.call(call).await.json()["backend"] == "reports").then_some(())
        });
        live.await.with_context(|| pair.server.logs())?;
        seen.push(saved.at.elapsed());
        let settled = pair.server.settled(&saved).await;
        let last = settled.history.last().context("a history")?;
        ours.push(Duration::from_millis(last.stage_ms));
        act.push(Duration::from_millis(last.act_ms));
    }
    report("edit: saved to first new answer", seen);
    report("  of that rendering, checking, writing", ours);
    report("  reload and proof (also waits for old workers)", act);
    Ok(())
}

async fn doing_nothing(pair: &Pair) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let stream = UnixStream::connect(pair.server.state.daemon_socket()).await?;
        let begin = Instant::now();
        let ask = common::http::request(
            Method::POST,
            "/apply",
            http_body_util::Empty::<bytes::Bytes>::new(),
        );
        let reply = common::http::send_on(stream, ask)
            .await
            .map_err(anyhow::Error::from_boxed)?;
        ensure!(reply.json()["changed"] == false, "{}", reply.text());
        took.push(begin.elapsed());
    }
    report("a reconcile with nothing to do", took);
    for process in pair.server.processes() {
        let words: Vec<_> = process.command.split(' ').take(2).collect();
        println!(
            "idle RSS: {:>6.1} MiB  {}",
            process::resident(process.pid) as f64 / 1024.0,
            words.join(" ")
        );
    }
    Ok(())
}

fn report(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let ms = |at: usize| {
        took.get(at.min(took.len() - 1))
            .map_or(0.0, |d| d.as_secs_f64() * 1e3)
    };
    println!(
        "{what}: median {:.1} ms, p95 {:.1}, most {:.1} ({} runs)",
        ms(took.len() / 2),
        ms(took.len() * 95 / 100),
        ms(took.len() - 1),
        took.len()
    );
}
