//! What supervisord.conf says: which programs run beside the daemon, and how each is stopped.

use std::collections::BTreeMap;

use serde::Serialize;

use super::nginx::seconds;
use super::settings::with_device;
use super::templates::{RenderError, Templates, utf8};
use super::{Command, Launch, Program, quote};
use crate::facts::{Facts, Installed};
use crate::paths::StateDir;
use crate::spec::{ChildOutput, Spec};

/// Below the generation's folder.
pub(super) const FILE: &str = "supervisor/supervisord.conf";

pub(super) fn render(
    templates: &Templates,
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
    launch: &Launch,
    programs: &BTreeMap<Program, Command>,
) -> Result<Vec<u8>, RenderError> {
    let (run, log, socket) = (state.run(), state.log(), state.supervisor_socket());
    let daemon = daemon(launch, state)?;
    // supervisord only has to be the more patient one, and a whole minute restarts nothing for a small edit.
    let patience = (seconds(spec.mesh.drain_timeout) + 5).next_multiple_of(60);
    let all = std::iter::once((&Program::Daemon, &daemon)).chain(programs);
    let files = match spec.supervisor.output {
        ChildOutput::Stdout => None,
        ChildOutput::Files => Some(utf8(&log)?),
    };
    templates.supervisord(&Values {
        socket: utf8(&socket)?,
        run: utf8(&run)?,
        log: utf8(&log)?,
        state_root: utf8(state.root())?,
        root: facts.host.root,
        programs: all
            .map(|(&program, command)| Entry::new(program, command, patience, files))
            .collect(),
    })
}

/// tailscaled in the foreground; it neither uploads logs nor looks for updates.
///
/// Two things can only be said in its environment. By itself it tries plain HTTP before HTTPS, and when nobody answers
/// that, it asks its maker's relays whether they know the server's address. And it makes `/var/lib/tailscale`.
pub(super) fn tailscaled(
    tailscaled: &Installed,
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
) -> Result<Command, RenderError> {
    let tun = match with_device(spec, facts) {
        true => spec.tailscale.device.as_str(),
        false => "userspace-networking",
    };
    let proxy = spec.tailscale.proxy_listen.filter(|_| !with_device(spec, facts));
    let data = state.tailscale();
    let socket = state.tailscale_socket();
    let mut command = Command {
        argv: vec![
            "env".to_owned(),
            format!("TS_FORCE_NOISE_443={}", !facts.plain_headscale),
            format!("TS_LOGS_DIR={}", utf8(&data)?),
            utf8(&tailscaled.path)?.to_owned(),
            "--no-logs-no-support".to_owned(),
            format!("--tun={tun}"),
            format!("--statedir={}", utf8(&data)?),
            format!("--state={}/tailscaled.state", utf8(&data)?),
            format!("--socket={}", utf8(&socket)?),
            format!("--port={}", spec.tailscale.port),
        ],
    };
    if let Some(addr) = proxy {
        // On one address tailscaled tells the two protocols apart by their first byte.
        command.argv.push(format!("--socks5-server={addr}"));
        command.argv.push(format!("--outbound-http-proxy-listen={addr}"));
    }
    Ok(command)
}

#[derive(Serialize)]
struct Values<'a> {
    socket: &'a str,
    run: &'a str,
    log: &'a str,
    state_root: &'a str,
    root: bool,
    programs: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'static str,
    /// As one line in supervisord's (shlex) quoting.
    command: String,
    argv: &'a [String],
    /// Lower starts earlier and stops later.
    priority: u16,
    stop_signal: &'static str,
    /// Until supervisord kills.
    stop_seconds: u64,
    /// Absent: supervisord's own stdout and stderr.
    logs: Option<Logs>,
}

#[derive(Serialize)]
struct Logs {
    stdout: String,
    stderr: String,
}

impl<'a> Entry<'a> {
    fn new(program: Program, command: &'a Command, patience: u64, log: Option<&str>) -> Self {
        // What drains gets its time; the others have nothing to wait for.
        let (priority, stop_signal, stop_seconds) = match program {
            Program::Daemon => (100, "TERM", patience),
            Program::Nginx => (200, "QUIT", patience),
            Program::Headscale => (300, "TERM", 15),
            Program::Tailscaled => (400, "TERM", 15),
        };
        Self {
            name: program.name(),
            command: quote::words(command.argv.iter().map(String::as_str)),
            argv: &command.argv,
            priority,
            stop_signal,
            stop_seconds,
            // supervisord expands `%` in these two keys once more than in all others.
            logs: log
                .map(|log| format!("{log}/{}", program.name()).replace('%', "%%"))
                .map(|path| Logs {
                    stdout: format!("{path}.out.log"),
                    stderr: format!("{path}.err.log"),
                }),
        }
    }
}

fn daemon(launch: &Launch, state: &StateDir) -> Result<Command, RenderError> {
    let mut argv = vec![utf8(&launch.exe)?];
    if let Some(config) = &launch.config {
        argv.extend(["--config", utf8(config)?]);
    }
    argv.extend(["--state-dir", utf8(state.root())?, "run"]);
    Ok(Command {
        argv: argv.into_iter().map(str::to_owned).collect(),
    })
}
