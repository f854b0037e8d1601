//! `dev-agent`: a stand-in guest agent for laptops and tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::out;
use crate::agent::dev::{DevAgent, Faults, Machine, Options, Pki};
use crate::names::{AppId, InstanceId};
use crate::spec::{AgentAddr, Gateway};

/// Stand in for the guest agents of one or more machines, under a CA of its own. Nothing is attested.
#[derive(Debug, Clone, clap::Args)]
pub struct DevAgentArgs {
    /// Where an agent listens: unix:/path or http://host:port, with =APP_ID when it is not that of --app-id; repeatable
    #[arg(long, value_name = "ADDR[=APP_ID]", default_value = "http://127.0.0.1:8090", value_parser = listen)]
    listen: Vec<(AgentAddr, Option<AppId>)>,
    /// The app of the listeners that name none
    #[arg(
        long,
        default_value = "de00000000000000000000000000000000000000",
        value_name = "40 HEX DIGITS"
    )]
    app_id: AppId,
    /// The instance id of every machine [default: none]
    #[arg(long, value_name = "40 HEX DIGITS")]
    instance_id: Option<InstanceId>,
    /// Keep the root here, so that several dev-agents share it [default: a new root each time]
    #[arg(long, value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// Make certificates as without a KMS: no app id
    #[arg(long)]
    no_kms: bool,
    /// Fail the first N calls
    #[arg(long, default_value_t = 0, value_name = "N")]
    fail_first: u32,
    /// Wait before each answer, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    delay_ms: u64,
    /// Let certificates live this many seconds [default: as asked for]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "SECONDS")]
    lifetime: u64,
    /// Stand in for a gateway, too: answer /prpc/Info on ADDR with DOMAIN:PORT
    #[arg(long, value_name = "ADDR=DOMAIN:PORT", value_parser = gateway)]
    gateway: Option<(SocketAddr, Gateway)>,
}

/// Serves until SIGTERM or SIGINT.
pub fn dev_agent(args: DevAgentArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(args: DevAgentArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let pki = match &args.root_dir {
        Some(dir) => Pki::load_or_create(dir)?,
        None => Pki::new()?,
    };
    let faults = Faults {
        fail_next: args.fail_first,
        delay_ms: args.delay_ms,
        no_kms: args.no_kms,
        lifetime_s: args.lifetime,
        ..Faults::default()
    };
    let machines: Vec<Machine> = args
        .listen
        .into_iter()
        .map(|(listen, app_id)| Machine {
            listen,
            app_id: app_id.unwrap_or(args.app_id),
            instance_id: args.instance_id,
            faults: faults.clone(),
        })
        .collect();
    let about: Vec<AppId> = machines.iter().map(|machine| machine.app_id).collect();
    let agent = DevAgent::start(Options {
        pki,
        machines,
        gateway: args.gateway,
    })
    .await?;

    let style = anstyle::AnsiColor::Yellow.on_default().bold();
    out::aside(format_args!(
        "{style}dev-agent: NOTHING IS ATTESTED. Its certificates prove nothing; never use it in production.{style:#}"
    ));
    for (addr, app_id) in agent.addrs().iter().zip(about) {
        out::aside(format_args!("dev-agent: app {app_id} at {addr}"));
    }
    if let Some(addr) = agent.gateway_addr() {
        out::aside(format_args!("dev-agent: gateway at http://{addr}"));
    }
    let cancel = CancellationToken::new();
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    };
    tokio::join!(stop, agent.run_until(cancel.clone()));
    Ok(())
}

fn listen(text: &str) -> anyhow::Result<(AgentAddr, Option<AppId>)> {
    let (addr, app_id) = match text.rsplit_once('=') {
        Some((addr, app_id)) => (addr, Some(app_id.parse().context("after =")?)),
        None => (text, None),
    };
    Ok((addr.parse()?, app_id))
}

fn gateway(text: &str) -> anyhow::Result<(SocketAddr, Gateway)> {
    let (addr, gateway) = text.split_once('=').context("expected ADDR=DOMAIN:PORT")?;
    let gateway: Gateway = gateway.parse()?;
    if matches!(gateway, Gateway::Fixed(_)) {
        bail!("a gateway tells a domain, not fixed/…");
    }
    Ok((
        addr.parse()
            .context("expected an address such as 127.0.0.1:9202")?,
        gateway,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(words: &[&str]) -> Result<DevAgentArgs, clap::Error> {
        let command = DevAgentArgs::augment_args(clap::Command::new("dev-agent"));
        DevAgentArgs::from_arg_matches(&command.try_get_matches_from([&["dev-agent"], words].concat())?)
    }

    #[test]
    fn listeners_name_their_app_or_take_the_common_one() {
        DevAgentArgs::augment_args(clap::Command::new("dev-agent")).debug_assert();
        let args = parse(&[]).unwrap();
        assert_eq!(args.listen[0].0.to_string(), "http://127.0.0.1:8090");

        let app = "aa00000000000000000000000000000000000001";
        let args = parse(&[
            "--listen",
            &format!("unix:/a.sock={app}"),
            "--listen",
            "unix:/b.sock",
        ])
        .unwrap();
        let apps: Vec<_> = args
            .listen
            .iter()
            .map(|(_, app)| app.map(|app| app.to_string()))
            .collect();
        assert_eq!(apps, [Some(app.to_owned()), None]);

        let args = parse(&["--gateway", "127.0.0.1:9202=apps.localhost:9443"]).unwrap();
        assert_eq!(args.gateway.unwrap().1.to_string(), "apps.localhost:9443");
        for bad in [
            ["--listen", "/a.sock"],
            ["--listen", "unix:/a.sock=aa"],
            ["--app-id", "aa"],
            ["--gateway", "127.0.0.1:9202"],
            ["--gateway", "127.0.0.1:9202=fixed/127.0.0.1:1"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
