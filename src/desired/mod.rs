//! What the machine should look like: a pure function of the spec and the facts.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod headscale;
mod nginx;
#[cfg(test)]
mod properties;
mod quote;
mod settings;
mod supervisord;
mod templates;
mod wildcards;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::headscale::server_url;
pub(crate) use self::nginx::FILE as NGINX;
pub use self::settings::backends;
pub(crate) use self::settings::with_device;
pub use self::templates::{RenderError, Templates};
pub(crate) use self::wildcards::{is_wildcard, only_ipv6};
use crate::api::ApiSettings;
use crate::facts::{Fact, Facts, Installed, Programs};
use crate::mesh::MeshSettings;
use crate::metrics;
use crate::node::NodeSettings;
use crate::page::{self, PageSettings};
use crate::paths::StateDir;
use crate::spec::{Front, Spec};

/// The spec itself, complete: what a generation was made from, and what serves again when `vpc.toml` is broken.
pub const EFFECTIVE: &str = "daemon/vpc.toml";

/// Template overrides are kept in a generation for the same reason.
pub const OVERRIDES: &str = "templates";

/// Stands for the tag while nginx.conf is rendered. Nobody's value: spaces are quoted, and it says nothing.
const NO_TAG: &str = "the tag of this generation";

/// Everything that follows from the spec and the facts. Pure: the same input gives the same bytes.
pub fn desired(
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
    launch: &Launch,
    templates: &Templates,
) -> Result<Desired, RenderError> {
    let builtin = spec.mesh.front == Front::Builtin;
    let (mut missing, mut notes) = (BTreeMap::new(), Vec::new());
    let mut files = BTreeMap::new();
    let mut programs = BTreeMap::new();

    if !builtin && let Some(nginx) = installed(&facts.programs.nginx, Program::Nginx, &mut missing) {
        programs.insert(Program::Nginx, nginx::command(nginx, state)?);
    }
    if let (Some(user), false) = (&spec.nginx.user, facts.host.root || builtin) {
        notes.push(format!(
            "nginx.user {user:?} is not used: only root can run nginx's workers as another user"
        ));
    }
    if facts.identity.is_none() {
        notes.push(format!(
            "mesh.https_listen {} is left out: waiting for the certificate from the guest agent",
            spec.mesh.https_listen
        ));
    }
    if spec.role.server {
        match headscale::render(templates, spec, facts, state)? {
            Err(why) => drop(missing.insert(Program::Headscale, why)),
            Ok(rendered) => {
                let rendered = rendered.into_iter();
                files.extend(
                    rendered.map(|(path, bytes)| (path.to_owned(), File::new(bytes, Reader::Headscale))),
                );
                let program = installed(&facts.programs.headscale, Program::Headscale, &mut missing);
                if let Some(program) = program {
                    programs.insert(Program::Headscale, headscale::command(program, state)?);
                }
            }
        }
    }
    if spec.role.node {
        let program = installed(&facts.programs.tailscaled, Program::Tailscaled, &mut missing);
        if let Some(program) = program {
            let command = supervisord::tailscaled(program, spec, facts, state)?;
            programs.insert(Program::Tailscaled, command);
        }
        if facts.programs.tailscale.is_none() {
            let client = spec.tailscale.client.display();
            notes.push(format!(
                "{client} is not installed (or not found where vpc.toml says): this node cannot join"
            ));
        }
    }
    let conf = supervisord::render(templates, spec, facts, state, launch, &programs)?;
    files.insert(supervisord::FILE.to_owned(), File::new(conf, Reader::Supervisord));

    files.insert(
        EFFECTIVE.to_owned(),
        File {
            mode: 0o600,
            ..File::new(spec.to_toml().into_bytes(), Reader::Daemon)
        },
    );

    files.extend(templates.overrides().map(|(name, text)| {
        let text = text.as_bytes().to_vec();
        (format!("{OVERRIDES}/{name}"), File::new(text, Reader::Daemon))
    }));

    let mut listeners = settings::listeners(spec, facts, state);
    let tag = match &mut listeners.mesh.front {
        Some(front) => {
            front.tag = tag(format!("{front:?}").as_bytes());
            front.tag.clone()
        }
        None => {
            // The tag stands in the file that it names, so the name is taken of the file without it.
            let conf = nginx::render(templates, spec, facts, state, NO_TAG)?;
            let conf = String::from_utf8_lossy(&conf);
            let tag = tag(conf.replace(NO_TAG, "").as_bytes());
            let conf = conf.replace(NO_TAG, &tag).into_bytes();
            files.insert(nginx::FILE.to_owned(), File::new(conf, Reader::Nginx));
            tag
        }
    };

    Ok(Desired {
        files,
        folders: folders(state),
        probes: probes(spec, facts, &programs),
        listeners,
        node: settings::node(spec, facts),
        programs,
        tag,
        missing,
        notes,
        facts: facts
            .rows()
            .into_iter()
            .map(|row| (row.key.to_owned(), row.value))
            .collect(),
    })
}

/// How a rendered file is checked by the program that will read it: the staged generation lies in `generation`,
/// and whatever the checker writes goes below `scratch`, which exists. `None`: that program has no checker
/// (supervisord) or is not installed.
pub fn check_command(
    reader: Reader,
    programs: &Programs,
    generation: &Path,
    scratch: &Path,
) -> Result<Option<Check>, RenderError> {
    let check = match (reader, &programs.nginx, &programs.headscale) {
        (Reader::Nginx, Some(nginx), _) => {
            nginx::check(&nginx.value, &generation.join(nginx::FILE), scratch)?
        }
        (Reader::Headscale, _, Some(headscale)) => {
            headscale::check(&headscale.value, &generation.join(headscale::FILE), scratch)?
        }
        _ => return Ok(None),
    };
    Ok(Some(check))
}

/// How supervisord starts our daemon: `exe --config CONFIG --state-dir STATE run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub exe: PathBuf,
    /// Passed on only when it was given.
    pub config: Option<PathBuf>,
}

/// The programs supervisord runs beside the daemon; the names are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    Daemon,
    Nginx,
    Headscale,
    Tailscaled,
}

impl Program {
    /// The name in supervisord.
    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon => "dstack-vpc",
            Self::Nginx => "nginx",
            Self::Headscale => "headscale",
            Self::Tailscaled => "tailscaled",
        }
    }
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// By path below the generation's folder, e.g. `nginx/nginx.conf`.
    pub files: BTreeMap<String, File>,
    /// Supervised programs other than the daemon; each runs with exactly these words.
    pub programs: BTreeMap<Program, Command>,
    /// Settings of the built-in listeners: they change in place.
    pub listeners: ListenerSettings,
    /// This machine as a node of the VPN; it joins in its own time.
    pub node: Option<NodeSettings>,
    /// Names what the front serves; with nginx that is the content of nginx.conf, where it stands and is probed. The same
    /// content has the same tag. It does not depend on the other files, so that a change for Headscale alone does not
    /// reload nginx.
    pub tag: String,
    /// Folders that the programs expect, with their mode.
    pub folders: BTreeMap<PathBuf, u32>,
    /// How to see that this generation serves.
    pub probes: Vec<Probe>,
    /// Programs that the role needs and that cannot run, and why: the machine is not ready without them.
    pub missing: BTreeMap<Program, String>,
    /// What else is left out for now and why, as a person should read it.
    pub notes: Vec<String>,
    /// The facts it was made from, by key: for telling later which of them have changed.
    pub facts: BTreeMap<String, String>,
}

/// What the daemon itself serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerSettings {
    pub mesh: MeshSettings,
    /// Server roles.
    pub api: Option<ApiSettings>,
    /// Where Prometheus finds the metrics; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The status page; `None`: there is none.
    pub page: Option<PageSettings>,
}

impl ListenerSettings {
    /// Where the daemon listens, by key.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let mut all = self.mesh.addresses();
        all.extend(self.api.as_ref().map(|api| ("server.api_listen", api.listen)));
        all.extend(self.metrics.map(|addr| (metrics::KEY, addr)));
        all.extend(self.page.as_ref().map(|page| (page::KEY, page.listen)));
        all
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub mode: u32,
    pub bytes: Vec<u8>,
    /// Whose file it is: who checks it and who must hear of a change.
    pub reader: Reader,
}

impl File {
    fn new(bytes: Vec<u8>, reader: Reader) -> Self {
        Self {
            mode: 0o644,
            bytes,
            reader,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// This program: `vpc.toml`, the effective settings, from which a restart finds the last good ones.
    Daemon,
    Nginx,
    Headscale,
    Supervisord,
}

impl Reader {
    /// Whose file a path below a generation's folder is: the first folder says so.
    pub fn of(path: &str) -> Self {
        match path.split('/').next() {
            Some("nginx") => Self::Nginx,
            Some("headscale") => Self::Headscale,
            Some("supervisor") => Self::Supervisord,
            _ => Self::Daemon,
        }
    }

    /// For whom a template is rendered.
    pub fn of_template(name: &str) -> Self {
        match name {
            templates::NGINX => Self::Nginx,
            templates::HEADSCALE => Self::Headscale,
            templates::SUPERVISORD => Self::Supervisord,
            _ => Self::Daemon,
        }
    }
}

/// A program and its arguments, no shell anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub argv: Vec<String>,
}

/// How a listener shows that it serves: a front answers `GET /.dstack-vpc/generation` with the tag, Headscale
/// `GET /health` with a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The key that set the listener, e.g. `mesh.https_listen`.
    pub key: String,
    /// As configured; an unspecified address is probed on loopback.
    pub listen: SocketAddr,
    pub tls: bool,
    /// Who answers there.
    #[serde(default = "nginx")]
    pub of: Program,
}

impl Probe {
    /// Whether it tells which configuration it serves.
    pub fn has_tag(&self) -> bool {
        self.of != Program::Headscale
    }
}

/// Manifests did not always say so.
fn nginx() -> Program {
    Program::Nginx
}

/// A consumer's own checker: exit 0 is a pass, and what it prints is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub command: Command,
    /// Set beside the inherited environment.
    pub env: Vec<(&'static str, String)>,
}

/// The program, or a note that it is missing.
fn installed<'a>(
    fact: &'a Option<Fact<Installed>>,
    program: Program,
    missing: &mut BTreeMap<Program, String>,
) -> Option<&'a Installed> {
    if fact.is_none() {
        let name = program.name();
        missing.insert(
            program,
            format!("{name} is not installed (or not found where vpc.toml says) and will not run"),
        );
    }
    fact.as_ref().map(|fact| &fact.value)
}

/// 64 bits of SHA-256 in hex: enough to tell generations apart, short enough to read.
fn tag(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..8])
}

/// nginx's workers may run as another user, so its folders can be entered by all; the other data is ours alone.
fn folders(state: &StateDir) -> BTreeMap<PathBuf, u32> {
    BTreeMap::from([
        (state.run(), 0o755),
        (nginx::prefix(state), 0o755),
        (state.vpc(), 0o755),
        (state.log(), 0o700),
        (state.headscale(), 0o700),
        (state.tailscale(), 0o700),
        (state.registry(), 0o700),
        (state.secrets(), 0o700),
    ])
}

fn probes(spec: &Spec, facts: &Facts, programs: &BTreeMap<Program, Command>) -> Vec<Probe> {
    let of = match spec.mesh.front {
        Front::Nginx => Program::Nginx,
        Front::Builtin => Program::Daemon,
    };
    let probe = |key: &str, listen, tls, of| Probe {
        key: key.to_owned(),
        listen,
        tls,
        of,
    };
    let mut probes = Vec::new();
    if of == Program::Daemon || programs.contains_key(&of) {
        probes.push(probe("mesh.http_listen", spec.mesh.http_listen, false, of));
        if facts.identity.is_some() {
            probes.push(probe("mesh.https_listen", spec.mesh.https_listen, true, of));
        }
    }
    if programs.contains_key(&Program::Headscale) {
        let of = Program::Headscale;
        probes.push(probe(
            "server.headscale_listen",
            spec.server.headscale_listen,
            false,
            of,
        ));
    }
    probes
}
