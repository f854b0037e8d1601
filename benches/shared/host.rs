//! This computer, and the program as it ships.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::common::machine::{Machine, Plan};
use crate::common::poll;

/// What ships, built by the `dist` profile beside the harness, or what `BENCH_BINARY` names.
pub(crate) fn shipped() -> Result<PathBuf> {
    let binary = match std::env::var_os("BENCH_BINARY") {
        Some(path) => path.into(),
        None => {
            let me = std::env::current_exe()?;
            me.ancestors()
                .nth(3)
                .context("the target folder")?
                .join("dist/dstack-vpc")
        }
    };
    ensure!(
        binary.exists(),
        "{} is missing; to build what ships: cargo build --profile dist --bin dstack-vpc",
        binary.display()
    );
    Ok(binary)
}

/// Waits until the machine serves, by asking the binary itself: an older one may tell its status in other words.
pub(crate) async fn start(mut plan: Plan, binary: &Path) -> Result<Machine> {
    plan.program = binary.to_owned();
    let machine = plan.spawn();
    let healthy = poll(Duration::from_secs(180), async || {
        machine.cli(&["healthcheck"]).status.success().then_some(())
    });
    match healthy.await {
        Some(()) => Ok(machine),
        None => bail!("{} does not serve:\n{}", binary.display(), machine.logs()),
    }
}

/// `2 processors (AMD EPYC 7B13), Linux 6.1`
pub(crate) fn computer() -> String {
    format!(
        "{} processors ({}), Linux {}",
        thread::available_parallelism().map_or(1, usize::from),
        processor_name().as_deref().unwrap_or("unknown"),
        kernel().as_deref().unwrap_or("of unknown version"),
    )
}

fn processor_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Without what its builder added.
fn kernel() -> Option<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let numbers: Vec<_> = release.split('.').take(2).collect();
    Some(numbers.join("."))
}

/// The first number in what a program says, wherever it says it.
pub(crate) fn version(program: &str, option: &str) -> String {
    let output = Command::new(program).arg(option).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat());
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let words = text.split([' ', '/', '-', '\n']);
    let mut words = words.map(|word| word.trim_start_matches('v'));
    let number = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    number.unwrap_or("of unknown version").to_owned()
}
