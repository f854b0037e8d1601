//! `check`: is the configuration right? All problems at once, then the consumers' own checkers where installed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

use anyhow::Context as _;

use super::apply::templates;
use super::check_report::{CheckReport, Checked, Verdict};
use super::{Context, out, until_ctrl_c};
use crate::agent::dev::pki::{LeafRequest, Pki};
use crate::apply::{Machine, Real};
use crate::desired::{Reader, desired};
use crate::facts::{self, ProgramScanner};
use crate::names::Host;
use crate::paths::StateDir;
use crate::spec::{self, Spec};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print problems and warnings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn check(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let text = context.config.as_deref().map(spec::read).transpose()?;
    let loaded = match spec::load(text.as_ref(), &context.env) {
        Ok(loaded) => loaded,
        Err(problems) => return show(&CheckReport::new(Err(&problems), Vec::new()), args.json),
    };
    let checkers = until_ctrl_c(consumers(context, &loaded.spec))?;
    show(&CheckReport::new(Ok(&loaded), checkers), args.json)
}

fn show(report: &CheckReport<'_>, json: bool) -> anyhow::Result<ExitCode> {
    match json {
        true => out::line(serde_json::to_string_pretty(report)?)?,
        false => out::print(report.text(true))?,
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Renders for a scratch folder and lets each consumer look at it; returns what they say. Nothing outside
/// that folder is touched: listeners get free ports there, and the certificate is a throw-away one.
async fn consumers(context: &Context, spec: &Spec) -> anyhow::Result<Vec<Checked>> {
    let scratch = tempfile::Builder::new()
        .prefix("dstack-vpc-check-")
        .tempdir()
        .context("no temporary folder")?;
    let state = StateDir::new(scratch.path());
    let mut spec = spec.clone();
    for listen in [&mut spec.mesh.http_listen, &mut spec.mesh.https_listen] {
        // A taken address is no matter of the configuration: `plan` and `apply` look at that.
        *listen = free_port(*listen).unwrap_or(*listen);
    }
    for upstream in spec.backends.iter_mut().flat_map(|it| it.upstream.iter_mut()) {
        // Nor is a name that is not known here, which those of other containers are not.
        if matches!(upstream.host, Host::Name(_)) {
            upstream.host = Host::Ip(Ipv4Addr::LOCALHOST.into());
        }
    }
    let assumed = [
        ("app_id", "0".repeat(40)),
        ("gateway_domain", "gateway.invalid:443".to_owned()),
    ];
    let mut facts = facts::assume(
        &assumed.map(|(key, value)| (key.to_owned(), value)),
        &spec,
        &state,
    )?;
    facts.programs = ProgramScanner::default().scan(&spec).await;
    if let Some(identity) = &facts.identity {
        let issued = Pki::new()?.issue(&"0".repeat(40).parse()?, &LeafRequest::both())?;
        let [chain @ .., root] = issued.chain_pems.as_slice() else {
            anyhow::bail!("the stand-in made no chain")
        };
        let dir = &identity.value.dir;
        fs::create_dir_all(dir)?;
        fs::write(dir.join("key.pem"), &issued.key_pem)?;
        fs::write(dir.join("chain.pem"), chain.concat())?;
        fs::write(dir.join("ca.pem"), root)?;
    }
    let desired = desired(&spec, &facts, &state, &context.launch()?, &templates(context)?)?;
    for dir in desired.folders.keys() {
        fs::create_dir_all(dir)?;
    }
    let generation = scratch.path().join("generation");
    for (path, file) in &desired.files {
        let path = generation.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&generation))?;
        fs::write(path, &file.bytes)?;
    }
    let machine = Real::new(&state, None);
    machine.know(&facts.programs);
    let consumers = [
        (Reader::Nginx, "nginx -t", facts.programs.nginx.is_some()),
        (
            Reader::Headscale,
            "headscale configtest",
            facts.programs.headscale.is_some(),
        ),
    ];
    let mut checked = Vec::new();
    for (reader, checker, installed) in consumers {
        if !desired.files.values().any(|file| file.reader == reader) {
            continue;
        }
        let verdict = match installed {
            false => Verdict::Skipped("it is not installed here".to_owned()),
            true => match machine.check(reader, &generation).await {
                Ok(()) => Verdict::Passed,
                // The scratch folder means nothing to a reader.
                Err(words) => Verdict::Failed(words.replace(&format!("{}/", scratch.path().display()), "")),
            },
        };
        checked.push(Checked {
            checker: checker.to_owned(),
            verdict,
        });
    }
    Ok(checked)
}

fn free_port(listen: SocketAddr) -> Option<SocketAddr> {
    TcpListener::bind(SocketAddr::new(listen.ip(), 0))
        .and_then(|listener| listener.local_addr())
        .ok()
}
