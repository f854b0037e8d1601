//! What is around the parts of a benchmark: which are wanted, how it ends, and where its page goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};

/// Whichever way it ends, what was started ends with it.
pub(crate) async fn run(bench: impl Future<Output = Result<()>>) -> ExitCode {
    let outcome = tokio::select! {
        outcome = bench => outcome,
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

/// What the arguments name, without those that cargo adds.
pub(crate) fn arguments() -> Vec<String> {
    let arguments = std::env::args().skip(1);
    arguments.filter(|arg| !arg.starts_with("--")).collect()
}

/// Those of `names` that were chosen, in their own order; all where none was.
pub(crate) fn wanted(names: &[&'static str], chosen: &[String]) -> Result<Vec<&'static str>> {
    for name in chosen {
        ensure!(names.contains(&name.as_str()), "{name} is none of {names:?}");
    }
    let is_wanted = |name: &&&str| chosen.is_empty() || chosen.iter().any(|it| it == *name);
    Ok(names.iter().filter(is_wanted).copied().collect())
}

/// Writes a page and its picture: whatever was measured to `BENCH_DOCS`, the `whole` into `docs/`.
pub(crate) fn publish(name: &str, whole: bool, page: &str, picture: Option<&str>) -> Result<()> {
    let docs = match std::env::var_os("BENCH_DOCS") {
        Some(docs) => PathBuf::from(docs),
        None if whole => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"),
        None => return Ok(()),
    };
    fs::write(docs.join(name).with_extension("md"), page)?;
    if let Some(picture) = picture {
        fs::write(docs.join(name).with_extension("svg"), picture)?;
    }
    eprintln!("bench: {name} is in {}", docs.display());
    Ok(())
}
