//! What nginx.conf says, and how nginx is started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::templates::{RenderError, Templates, utf8};
use super::{Check, Command, quote, wildcards};
use crate::facts::{Facts, Installed, Version};
use crate::names::{API_HOST, HostPort};
use crate::paths::StateDir;
use crate::spec::{Backend, Protocol, Spec};

/// Below the generation's folder.
pub(crate) const FILE: &str = "nginx/nginx.conf";

/// nginx.conf for these facts. `tag` is served by the probe location.
pub(super) fn render(
    templates: &Templates,
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
    tag: &str,
) -> Result<Vec<u8>, RenderError> {
    let version = facts
        .programs
        .nginx
        .as_ref()
        .map_or(Version::default(), |p| p.value.version);
    let https = match &facts.identity {
        None => None,
        Some(identity) => {
            let dir = utf8(&identity.value.dir)?;
            Some(Https {
                listen: Listen::new(spec.mesh.https_listen, spec, facts),
                chain: format!("{dir}/chain.pem"),
                key: format!("{dir}/key.pem"),
                ca: format!("{dir}/ca.pem"),
                http2_param: version < HTTP2_DIRECTIVE,
                http2_directive: version >= HTTP2_DIRECTIVE,
            })
        }
    };
    templates.nginx(&Values {
        tag,
        user: user(spec, facts),
        workers: spec.nginx.workers,
        drain_seconds: seconds(spec.nginx.drain_timeout),
        header_seconds: seconds(spec.limits.header_timeout),
        idle_seconds: seconds(spec.limits.header_timeout / 2),
        stall_seconds: seconds(spec.limits.stall_timeout),
        header_kib: spec.limits.header_kib,
        streams: spec.limits.streams,
        pass_trailers: version >= Version(1, 27, 2),
        state_root: utf8(state.root())?,
        client: spec.mesh.client_listen.to_string(),
        auth: spec.mesh.auth_listen.to_string(),
        http: Listen::new(spec.mesh.http_listen, spec, facts),
        https,
        upstreams: upstreams(spec),
        servers: servers(spec),
    })
}

/// nginx in the foreground. `daemon` and `pid` are not in the file, so that [`check`] can name another pid file.
pub(super) fn command(nginx: &Installed, state: &StateDir) -> Result<Command, RenderError> {
    let conf = state.current().join(FILE);
    let prefix = prefix(state);
    let pid = state.run().join("nginx.pid");
    argv(nginx, utf8(&prefix)?, utf8(&conf)?, &["daemon off"], utf8(&pid)?)
}

/// nginx's own checker on a staged copy; everything it writes lies below `scratch`.
pub(super) fn check(nginx: &Installed, conf: &Path, scratch: &Path) -> Result<Check, RenderError> {
    let pid = scratch.join("nginx.pid");
    let mut command = argv(nginx, utf8(scratch)?, utf8(conf)?, &[], utf8(&pid)?)?;
    command.argv.extend(["-t", "-q"].map(str::to_owned));
    Ok(Check {
        command,
        env: Vec::new(),
    })
}

/// nginx's prefix: temporary bodies go below it, so it has to exist.
pub(super) fn prefix(state: &StateDir) -> PathBuf {
    state.run().join("nginx")
}

/// From here on `listen … http2` is deprecated and `http2 on` exists.
const HTTP2_DIRECTIVE: Version = Version(1, 25, 1);

/// From here on `-e` exists; older ones write one line to their compiled-in error log.
const ERROR_LOG_OPTION: Version = Version(1, 19, 5);

#[derive(Serialize)]
struct Values<'a> {
    tag: &'a str,
    user: Option<User<'a>>,
    /// 0: as many as processors.
    workers: u16,
    drain_seconds: u64,
    header_seconds: u64,
    idle_seconds: u64,
    stall_seconds: u64,
    header_kib: u16,
    streams: u16,
    pass_trailers: bool,
    state_root: &'a str,
    client: String,
    auth: String,
    http: Listen,
    https: Option<Https>,
    upstreams: Vec<Upstream>,
    servers: Vec<Server<'a>>,
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    group: Option<&'a str>,
}

#[derive(Serialize)]
struct Listen {
    address: String,
    /// Said once for each address: ` ipv6only=off`, ` ipv6only=on` or nothing.
    ipv6only: &'static str,
}

#[derive(Serialize)]
struct Https {
    listen: Listen,
    chain: String,
    key: String,
    ca: String,
    http2_param: bool,
    http2_directive: bool,
}

#[derive(Serialize)]
struct Upstream {
    name: String,
    servers: Vec<String>,
}

#[derive(Serialize)]
struct Server<'a> {
    /// What the auth service checks; absent: any app with a certificate.
    backend: Option<&'a str>,
    server_name: &'a str,
    default: bool,
    /// Absent: nothing serves this Host.
    upstream: Option<String>,
}

impl Listen {
    fn new(addr: SocketAddr, spec: &Spec, facts: &Facts) -> Self {
        let alone = wildcards::only_ipv6(spec).contains(&addr) || !facts.host.ipv6;
        Self {
            address: addr.to_string(),
            ipv6only: match wildcards::is_wildcard(addr) {
                true if alone => " ipv6only=on",
                true => " ipv6only=off",
                false => "",
            },
        }
    }
}

/// Only a master that is root can change its workers' user.
fn user<'a>(spec: &'a Spec, facts: &'a Facts) -> Option<User<'a>> {
    if !facts.host.root {
        return None;
    }
    let detected = facts.host.web_user.as_ref();
    match (&spec.nginx.user, detected) {
        (Some(name), Some((web, group))) if name == web => Some(User {
            name,
            group: Some(group),
        }),
        (Some(name), _) => Some(User { name, group: None }),
        (None, Some((name, group))) => Some(User {
            name,
            group: Some(group),
        }),
        (None, None) => None,
    }
}

fn upstreams(spec: &Spec) -> Vec<Upstream> {
    let group = |name: String, servers: &[HostPort]| Upstream {
        name,
        servers: servers.iter().map(ToString::to_string).collect(),
    };
    let api = spec
        .role
        .server
        .then(|| group("vpc_api".to_owned(), &[HostPort::from(spec.server.api_listen)]));
    let backends = http_backends(spec).map(|b| group(upstream_name(b.name.as_str()), &b.upstream));
    api.into_iter().chain(backends).collect()
}

/// The others are served by the daemon itself, whichever front is configured.
pub(super) fn http_backends(spec: &Spec) -> impl Iterator<Item = &Backend> {
    spec.backends
        .iter()
        .filter(|backend| backend.protocol == Protocol::Http)
}

/// Server blocks in the order of the file, but the default one first: it carries the socket options.
fn servers(spec: &Spec) -> Vec<Server<'_>> {
    let mut servers: Vec<_> = http_backends(spec)
        .map(|backend| Server {
            backend: Some(backend.name.as_str()),
            server_name: backend.server_name.as_ref().map_or("_", |n| n.as_str()),
            default: backend.server_name.is_none(),
            upstream: Some(upstream_name(backend.name.as_str())),
        })
        .collect();
    if spec.role.server {
        servers.push(Server {
            backend: Some(API_HOST),
            server_name: API_HOST,
            default: false,
            upstream: Some("vpc_api".to_owned()),
        });
    }
    if !servers.iter().any(|s| s.default) {
        servers.push(Server {
            backend: None,
            server_name: "_",
            default: true,
            upstream: None,
        });
    }
    servers.sort_by_key(|s| !s.default);
    servers
}

/// No backend name has an underscore, so these never meet our own groups.
fn upstream_name(backend: &str) -> String {
    format!("backend_{backend}")
}

fn argv(
    nginx: &Installed,
    prefix: &str,
    conf: &str,
    globals: &[&str],
    pid: &str,
) -> Result<Command, RenderError> {
    let unquotable = |e: std::io::Error| RenderError::Unquotable {
        file: "nginx's arguments".to_owned(),
        why: e.to_string(),
    };
    let mut directives: String = globals.iter().map(|d| format!("{d}; ")).collect();
    directives += &format!("pid {};", quote::nginx_string(pid).map_err(unquotable)?);
    let mut argv = vec![utf8(&nginx.path)?.to_owned()];
    argv.extend(["-p", prefix, "-c", conf].map(str::to_owned));
    if nginx.version >= ERROR_LOG_OPTION {
        argv.extend(["-e", "stderr"].map(str::to_owned));
    }
    argv.extend(["-g".to_owned(), directives]);
    Ok(Command { argv })
}

/// Whole seconds, rounded up: 0 would mean "no limit" to the consumers.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).max(1) as u64
}
