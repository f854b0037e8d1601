//! What headscale.yaml says, and how Headscale is started. Valid for 0.26 to 0.29.

use std::path::Path;

use serde::Serialize;

use super::templates::{RenderError, Templates, utf8};
use super::{Check, Command};
use crate::facts::{Facts, Installed, Version};
use crate::names::{DnsName, Host};
use crate::paths::StateDir;
use crate::spec::{Derp, Gateway, LogFormat, ServerUrl, Spec};

/// Below the generation's folder.
pub(super) const FILE: &str = "headscale/headscale.yaml";

/// Beside it, where public relays are used: the map that was fetched.
const DERP_MAP: &str = "headscale/derp.yaml";

/// By path below the generation's folder.
pub(super) type Files = Vec<(&'static str, Vec<u8>)>;

/// The files, or the note why there are none yet.
pub(super) fn render(
    templates: &Templates,
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
) -> Result<Result<Files, String>, RenderError> {
    let server_url = match server_url(spec, facts) {
        Ok(url) => url,
        Err(note) => return Ok(Err(note)),
    };
    let (data, run) = (state.headscale(), state.run());
    // Headscale makes a `file:` URI of its database's path without quoting it.
    if utf8(&data)?.contains(['%', '?', '#']) {
        return Err(RenderError::Unquotable {
            file: "headscale.yaml".to_owned(),
            why: format!("{data:?}: its database cannot lie below a path with `%`, `?` or `#`"),
        });
    }
    // Headscale is never told to fetch the public map itself: from 0.27 on it does not start when it cannot.
    let public = facts.derp_map.as_ref().map(|map| map.value.to_yaml());
    let public_path = state.current().join(DERP_MAP);
    let (embedded, path, public) = match &spec.vpn.derp {
        Derp::Embedded => (true, None, None),
        Derp::Auto => (true, public.as_ref().map(|_| public_path.as_path()), public),
        Derp::Public if public.is_none() => {
            return Ok(Err(
                "headscale waits: vpn.derp = \"public\" needs the public map of relays, which is not here yet"
                    .to_owned(),
            ));
        }
        Derp::Public => (false, Some(public_path.as_path()), public),
        Derp::File(path) => (false, Some(path.as_path()), None),
    };
    let values = Values {
        server_url,
        listen: spec.server.headscale_listen.to_string(),
        data: utf8(&data)?,
        run: utf8(&run)?,
        metrics_listen: match &facts.programs.headscale {
            Some(program) if program.value.version >= Version(0, 28, 0) => "",
            _ => "127.0.0.1:0",
        },
        prefix: spec.vpn.prefix.to_string(),
        base_domain: spec.vpn.base_domain.as_str(),
        nameservers: spec.vpn.nameservers.iter().map(ToString::to_string).collect(),
        derp: Relays {
            embedded,
            path: path.map(utf8).transpose()?.unwrap_or_default(),
        },
        log_format: match spec.log.format {
            LogFormat::Json => "json",
            LogFormat::Auto | LogFormat::Text => "text",
        },
    };
    let mut files = vec![(FILE, templates.headscale(&values)?)];
    files.extend(public.map(|map| (DERP_MAP, map.into_bytes())));
    Ok(Ok(files))
}

/// Headscale in the foreground.
pub(super) fn command(headscale: &Installed, state: &StateDir) -> Result<Command, RenderError> {
    let conf = state.current().join(FILE);
    let argv = [utf8(&headscale.path)?, "serve", "--config", utf8(&conf)?];
    Ok(Command {
        argv: argv.map(str::to_owned).to_vec(),
    })
}

/// `configtest` opens and migrates the database it is shown, so it is shown another one below `scratch`.
pub(super) fn check(headscale: &Installed, conf: &Path, scratch: &Path) -> Result<Check, RenderError> {
    let argv = [utf8(&headscale.path)?, "configtest", "--config", utf8(conf)?];
    let elsewhere = [
        ("HEADSCALE_DATABASE_SQLITE_PATH", "headscale.sqlite"),
        ("HEADSCALE_NOISE_PRIVATE_KEY_PATH", "headscale-noise.key"),
        ("HEADSCALE_DERP_SERVER_PRIVATE_KEY_PATH", "headscale-derp.key"),
        ("HEADSCALE_UNIX_SOCKET", "headscale.sock"),
    ];
    let env = elsewhere.map(|(key, name)| Ok((key, utf8(&scratch.join(name))?.to_owned())));
    Ok(Check {
        command: Command {
            argv: argv.map(str::to_owned).to_vec(),
        },
        env: env.into_iter().collect::<Result<_, RenderError>>()?,
    })
}

#[derive(Serialize)]
struct Values<'a> {
    server_url: String,
    listen: String,
    data: &'a str,
    run: &'a str,
    metrics_listen: &'static str,
    prefix: String,
    base_domain: &'a str,
    nameservers: Vec<String>,
    derp: Relays<'a>,
    log_format: &'static str,
}

#[derive(Serialize)]
struct Relays<'a> {
    embedded: bool,
    /// Empty: none.
    path: &'a str,
}

/// `server.url`, or what the gateway would call this app's Headscale port.
pub fn server_url(spec: &Spec, facts: &Facts) -> Result<String, String> {
    let url = match (&spec.server.url, &facts.gateway, &facts.app_id) {
        (ServerUrl::Is(url), _, _) => url.clone(),
        (ServerUrl::Auto, None, _) => {
            return Err(
                "headscale waits: server.url = \"auto\" needs the gateway domain, which is not known yet"
                    .to_owned(),
            );
        }
        (ServerUrl::Auto, _, None) => {
            return Err(
                "headscale waits: server.url = \"auto\" needs this app's id, which is not known yet"
                    .to_owned(),
            );
        }
        (ServerUrl::Auto, Some(gateway), Some(app)) => {
            let Gateway::Domain { domain, port } = &gateway.value else {
                return Err(
                    "headscale is left out: a fixed/ gateway gives no public name; set server.url".to_owned(),
                );
            };
            let listen = spec.server.headscale_listen.port();
            format!("https://{}-{listen}.{domain}:{port}", app.value)
                .parse()
                .map_err(|e| {
                    format!("headscale is left out: no URL can be made of the gateway domain {domain}: {e}")
                })?
        }
    };
    let base = &spec.vpn.base_domain;
    let host: Option<Host> = url.host_str().and_then(|h| h.parse().ok());
    if matches!(&host, Some(Host::Name(name)) if DnsName::is_within(name, base)) {
        return Err(format!(
            "headscale is left out: its URL {url} lies within vpn.base_domain {base}, which Headscale refuses; change vpn.base_domain"
        ));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
