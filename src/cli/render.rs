//! `render`: everything that would be written. Needs no root, no network, no agent and no program.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::apply::templates;
use super::{Context, out};
use crate::desired::desired;
use crate::facts;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write the files below this folder instead of printing them; it must be new or empty
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Stands in for what the machine would say: app_id=…, instance_id=…, gateway_domain=…
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    assume: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("expected KEY=VALUE, such as app_id=<40 hex digits>")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn render(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let spec = context.load()?.spec;
    let facts = facts::assume(&args.assume, &spec, &context.state)?;
    let desired = desired(
        &spec,
        &facts,
        &context.state,
        &context.launch()?,
        &templates(context)?,
    )?;
    for note in desired.missing.values().chain(&desired.notes) {
        out::aside(format_args!("note: {note}"));
    }
    let Some(out) = &args.out else {
        let texts: BTreeMap<_, _> = desired
            .files
            .iter()
            .map(|(path, file)| (path, String::from_utf8_lossy(&file.bytes)))
            .collect();
        for (path, text) in texts {
            out::print(format_args!("# ==> {path}\n{}\n\n", text.trim_end()))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} is not empty; give a new folder, so that nothing old is taken for new",
            out.display()
        );
    }
    for (path, file) in &desired.files {
        let path = out.join(path);
        let folder = path.parent().unwrap_or(out);
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(&path, &file.bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        out::line(path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
