//! 10, 1,000 and 10,000 backends, beside those who render the same.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::alone::Alone;
use crate::measure::{Times, exponent, ms};
use crate::page::Page;
use crate::rivals::{Kind, Rival};
use crate::shared::chart::Panel;
use crate::shared::proc;
use crate::shared::targets::Limit::AtMost;
use crate::shared::targets::Target;
use crate::site::{File, Stage};

const SIZES: [usize; 3] = [10, 1_000, 10_000];
/// Steps that grow with the backends, by the command that does nothing else.
const STEPS: [&str; 3] = ["render", "plan", "check"];

/// Whose time it is.
#[derive(PartialEq, Eq)]
enum Whose {
    Ours,
    Nginx,
    Both,
}

type Column = fn(&Line) -> f64;

/// What was measured at one size, as medians in milliseconds; not a number where it was not.
struct Line {
    backends: usize,
    steps: [f64; STEPS.len()],
    nginx_check: f64,
    nothing: f64,
    ours: (f64, f64),
    alone: (f64, f64),
    built_in: (f64, f64),
    rivals: [f64; 2],
    memory: u64,
}

pub(crate) async fn run(page: &mut Page, stage: &Stage) -> Result<()> {
    let mut lines = Vec::new();
    for backends in SIZES {
        eprintln!("bench: {backends} backends");
        lines.push(measure(stage, backends).await?);
    }
    // What is ours alone is to grow no faster than the backends; what nginx takes with them is nginx's.
    let columns: [(&str, Whose, Column); 11] = [
        ("`render`", Whose::Ours, |line| line.steps[0]),
        ("`plan`", Whose::Ours, |line| line.steps[1]),
        ("nothing to do", Whose::Ours, |line| line.nothing),
        ("built-in front, edit: first new answer", Whose::Ours, |line| {
            line.built_in.0
        }),
        ("built-in front, edit: verified", Whose::Ours, |line| {
            line.built_in.1
        }),
        ("`check`", Whose::Both, |line| line.steps[2]),
        ("edit: first new answer", Whose::Both, |line| line.ours.0),
        ("edit: verified", Whose::Both, |line| line.ours.1),
        ("nginx alone: `nginx -t`", Whose::Nginx, |line| line.nginx_check),
        ("nginx alone: first new answer", Whose::Nginx, |line| line.alone.0),
        ("nginx alone: no old worker", Whose::Nginx, |line| line.alone.1),
    ];
    let [_, few, many] = &lines[..] else {
        unreachable!("three sizes")
    };
    let mut rows = Vec::new();
    for (name, whose, of) in columns {
        let mut row = vec![name.to_owned()];
        row.extend(lines.iter().map(|line| ms(of(line))));
        let beyond = of(many) - of(&lines[0]);
        row.push(format!("{:.1}", beyond * 1e3 / (many.backends - SIZES[0]) as f64));
        let exponent = exponent((few.backends, of(few)), (many.backends, of(many)));
        row.push(format!("{exponent:.2}"));
        rows.push(row);
        if whose == Whose::Ours {
            let what = format!("{name}, 1,000 to 10,000 backends: exponent of growth");
            page.target(Target::new(what, AtMost(1.1, " ×"), exponent));
        }
    }
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let mut row = vec![format!("{}: first new answer", kind.name())];
        row.extend(lines.iter().map(|line| ms(line.rivals[at])));
        row.extend(["".to_owned(), "".to_owned()]);
        rows.push(row);
    }
    let mut row = vec!["daemon's memory, MiB".to_owned()];
    row.extend(
        lines
            .iter()
            .map(|line| format!("{:.0}", proc::mebibytes(line.memory as f64))),
    );
    row.extend(["".to_owned(), "".to_owned()]);
    rows.push(row);
    page.section(
        "Many backends",
        "Medians in ms. `render`, `plan` and `check` are whole commands of the program, `check` with `nginx -t`; *nothing to do* and *edit* are \
         the daemon's, with a debounce of 1 ms. consul-template looks at a file every 2 s and checks nothing before it reloads; confd looks every \
         second, which is the most it can, and runs `nginx -t`, too (its `-watch` panics when a file is saved by rename). Neither waits for \
         anything after the reload. nginx itself compares each `upstream` block with every other, so that what it takes grows with their square.",
        &["", "10", "1,000", "10,000", "µs a backend", "exponent"],
        &rows,
    );
    for (title, at_size) in [
        ("Edit to first new answer, ms (less is better)", 0),
        ("The same with 10,000 backends", 2),
    ] {
        let groups = lines
            .iter()
            .enumerate()
            .filter(|(at, _)| (*at == 2) == (at_size == 2));
        page.panels.push(Panel {
            title,
            groups: groups
                .map(|(_, line)| {
                    let values = vec![line.ours.0, line.alone.0, line.rivals[0], line.rivals[1]];
                    (format!("{} backends", line.backends), values)
                })
                .collect(),
        });
    }
    Ok(())
}

async fn measure(stage: &Stage, backends: usize) -> Result<Line> {
    let rounds = if backends > 5_000 { 3 } else { 11 };
    let mut file = File {
        debounce: "1ms",
        ..File::new(backends)
    };
    let (site, _) = stage.site(file.clone()).await?;
    let alone = Alone::start(stage, &site).await?;
    let mut steps: [Times; STEPS.len()] = Default::default();
    let (mut nothing, mut nginx_check) = (Times::default(), Times::default());
    let mut edits: [Times; 4] = Default::default();
    for _ in 0..rounds {
        for (step, times) in STEPS.iter().zip(&mut steps) {
            let begin = Instant::now();
            let output = site.machine.cli(&[step]);
            times.add(begin.elapsed());
            ensure!(
                output.status.success(),
                "{step}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let begin = Instant::now();
        alone.check()?;
        nginx_check.add(begin.elapsed());
        let begin = Instant::now();
        site.ask().await?;
        nothing.add(begin.elapsed());
        file.moved = !file.moved;
        let ours = site.move_first(stage, &file).await?;
        let bare = alone.edit(stage, file.moved).await?;
        for (times, took) in edits
            .iter_mut()
            .zip([ours.seen, ours.verified, bare.seen, bare.verified])
        {
            times.add(took);
        }
    }
    let memory = proc::resident(&[site.daemon()?]);
    drop(alone);
    let mut rivals = [f64::NAN; 2];
    if file.moved {
        file.moved = false;
        site.move_first(stage, &file).await?;
    }
    for (kind, median) in Kind::ALL.into_iter().zip(&mut rivals) {
        let rival = Rival::start(stage, &site, kind, backends).await?;
        let mut times = Times::default();
        for round in 0..rounds {
            // Between the looks of one, and after the other has set its watch again.
            tokio::time::sleep(std::time::Duration::from_millis(300 + 170 * round as u64 % 2_000)).await;
            times.add(rival.edit(stage, round % 2 == 0).await?.seen);
        }
        *median = times.median();
    }
    drop(site);
    let built_in = built_in(stage, backends).await?;
    let [seen, verified, bare_seen, bare] = edits.map(|times| times.median());
    Ok(Line {
        backends,
        steps: steps.map(|times| times.median()),
        nginx_check: nginx_check.median(),
        nothing: nothing.median(),
        ours: (seen, verified),
        alone: (bare_seen, bare),
        built_in,
        rivals,
        memory,
    })
}

/// The same edit where no nginx is.
async fn built_in(stage: &Stage, backends: usize) -> Result<(f64, f64)> {
    let mut file = File {
        debounce: "1ms",
        front: "builtin",
        ..File::new(backends)
    };
    let (site, _) = stage.site(file.clone()).await?;
    let [mut seen, mut verified] = [Times::default(), Times::default()];
    for _ in 0..11 {
        file.moved = !file.moved;
        let took = site.move_first(stage, &file).await?;
        seen.add(took.seen);
        verified.add(took.verified);
    }
    Ok((seen.median(), verified.median()))
}
