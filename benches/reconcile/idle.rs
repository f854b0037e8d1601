//! What nothing costs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::page::Page;
use crate::rivals::{Kind, Rival};
use crate::shared::proc;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Stage};

const BACKENDS: usize = 1_000;
const LONG: Duration = Duration::from_secs(60);
/// First requests, first looks.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run(page: &mut Page, stage: &Stage) -> Result<()> {
    let (site, start) = stage.site(File::new(BACKENDS)).await?;
    let mut watched = vec![("dstack-vpc".to_owned(), site.daemon()?)];
    let rivals = [
        Rival::start(stage, &site, Kind::ALL[0], BACKENDS).await?,
        Rival::start(stage, &site, Kind::ALL[1], BACKENDS).await?,
    ];
    watched.extend(
        Kind::ALL
            .iter()
            .zip(&rivals)
            .map(|(kind, rival)| (kind.name().to_owned(), rival.pid())),
    );
    let others = site.machine.processes().into_iter();
    watched.extend(
        others
            .filter(|process| {
                process.command.contains("supervisord") || process.command.starts_with("nginx: master")
            })
            .map(|process| {
                (
                    process
                        .command
                        .split([' ', '/'])
                        .find(|word| ["supervisord", "nginx:"].contains(word))
                        .unwrap_or("other")
                        .trim_end_matches(':')
                        .to_owned()
                        + " (ours)",
                    process.pid,
                )
            }),
    );
    tokio::time::sleep(SETTLE).await;
    let before: Vec<_> = watched
        .iter()
        .map(|(_, pid)| (proc::cpu(&[*pid]), switches(*pid)))
        .collect();
    tokio::time::sleep(LONG).await;
    let mut rows = Vec::new();
    let mut threads = Vec::new();
    for ((name, pid), (cpu, woken)) in watched.iter().zip(before) {
        let share = (proc::cpu(&[*pid]) - cpu) as f64 / LONG.as_micros() as f64 * 100.0;
        let now = switches(*pid);
        let woken: BTreeMap<_, _> = now
            .into_iter()
            .map(|(thread, count)| (thread.clone(), count - woken.get(&thread).copied().unwrap_or(0)))
            .collect();
        let all: u64 = woken.values().sum();
        let each = all as f64 / LONG.as_secs_f64();
        if name == "dstack-vpc" {
            page.target(Target::new("daemon's CPU when idle", AtMost(0.1, " %"), share));
            let told: u64 = woken
                .iter()
                .filter(|((_, thread), _)| thread.starts_with("notify"))
                .map(|(_, count)| count)
                .sum();
            page.target(Target::new(
                "daemon's wake-ups a second when idle, but for its timers'",
                AtMost(1.0, ""),
                told as f64 / LONG.as_secs_f64(),
            ));
            threads.extend(woken);
        }
        rows.push(vec![
            name.clone(),
            format!("{share:.3}"),
            format!("{each:.1}"),
            format!("{:.0}", proc::mebibytes(proc::resident(&[*pid]) as f64)),
        ]);
    }
    let mut names: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for ((_, name), count) in threads {
        let entry = names.entry(name).or_default();
        entry.0 += 1;
        entry.1 += count;
    }
    let words = names
        .iter()
        .filter(|(_, (_, count))| *count > 0)
        .map(|(name, (threads, count))| format!("`{name}` ({threads}): {count}"));
    page.section(
        "Nothing happens",
        &format!(
            "{BACKENDS} backends, {} s without an edit or a request. A wake-up is a voluntary switch of any thread. The daemon's, by thread: {}. `notify` \
             hears of files, our own looks among them; all the others are timers, which wake about twice for each time that they end: the look at the file's signature (1 s), the reconcile that nothing told of (`reconcile.interval`, 30 s), the look for programs \
             (30 s), the agent and the gateway (30 s and more), the certificate (60 s). From the start of `up` to ready it took {} ms.",
            LONG.as_secs(),
            words.collect::<Vec<_>>().join(", "),
            start.as_millis()
        ),
        &["", "CPU %", "wake-ups a second", "memory, MiB"],
        &rows,
    );
    Ok(())
}

/// Voluntary context switches of each thread, by its number and name.
fn switches(pid: i32) -> BTreeMap<(String, String), u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim().to_owned())
            };
            let number = task.file_name().into_string().ok()?;
            Some((
                (number, field("Name:")?),
                field("voluntary_ctxt_switches:")?.parse().ok()?,
            ))
        })
        .collect()
}
