//! From text and environment to a [`Spec`], in one pass that finds everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use toml::de::{DeTable, DeValue};

use super::check;
use super::codec::Codec;
use super::document::Document;
use super::keys::Spec;
use super::numbers::Int;
use super::problem::{MOST_PROBLEMS, Origin, Problem, Problems, Severity};
use super::table::{Reader, Variable};
use super::text::ConfigText;
use super::values::Role;
use super::variables::{self, Overrides};

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the user wants.
    pub spec: Spec,
    /// What looks wrong, and keeps nothing from working.
    pub warnings: Problems,
    /// SHA-256 in hex of the file and of the variables that were read: the same input has the same hash.
    pub input_hash: String,
    /// The file's name as messages show it.
    pub file: Option<String>,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where the value of a key, such as `mesh.client_listen` or `backends[0].name`, comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// The same in words: `vpc.toml:3`, `VPC_NODE_NAME`, `default`.
    pub fn source(&self, key: &str) -> String {
        match self.origin(key) {
            Origin::Default => "default".into(),
            Origin::Variable { name, .. } => name.clone(),
            Origin::File(spot) => format!("{}:{}", self.file.as_deref().unwrap_or("file"), spot.line),
        }
    }
}

/// Loads a configuration from a file's text, if there is one, and the environment.
///
/// Variables that do not concern this program are passed over, so `env` may be all of them.
pub fn load(source: Option<&ConfigText>, env: &BTreeMap<String, String>) -> Result<Loaded, Problems> {
    let text = source.map_or("", |source| &source.text);
    let (root, syntax) = DeTable::parse_recoverable(text);
    let (overrides, problems) = variables::sort_out(env);
    let input_hash = hash(source, &overrides);

    let mut reader = Reader {
        source,
        variables: overrides.keys.clone(),
        problems,
        origins: BTreeMap::new(),
        failed: BTreeSet::new(),
    };
    let mut document = Document {
        reader: &mut reader,
        root: root.get_ref(),
    };
    let spec = document.read(&overrides);
    if syntax.is_empty() {
        let found = spec.as_ref().map(|spec| check::check(spec, &reader));
        reader.problems.extend(found.unwrap_or_default());
    } else {
        report_syntax(&mut reader, &syntax, text.len());
    }

    if let Some(later) = later_version(root.get_ref(), &reader) {
        // What its other keys mean is not known here.
        reader.problems = vec![later];
    }

    let unusable = reader
        .problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    let problems = Problems::new(reader.problems, source);
    match spec {
        Some(spec) if !unusable => Ok(Loaded {
            spec,
            warnings: problems,
            input_hash,
            file: source.map(|source| source.path.clone()),
            origins: reader.origins,
        }),
        _ => Err(problems),
    }
}

/// The problem of a file that was written for a later version of this program.
fn later_version(root: &DeTable<'_>, reader: &Reader<'_>) -> Option<Problem> {
    let value = root.get("version")?;
    let DeValue::Integer(digits) = value.get_ref() else {
        return None;
    };
    let version = u64::from_str_radix(digits.as_str(), digits.radix()).ok()?;
    (version > 1).then(|| {
        let ours = concat!("dstack-vpc ", env!("CARGO_PKG_VERSION"));
        Problem::new("this file is for a later dstack-vpc", reader.in_file(value.span()))
            .key("version")
            .expected(format!("this is {ours}, which knows version 1 of the file only"))
            .help("start the dstack-vpc that it was written for, or use the file from before; `dstack-vpc init` prints one for this version".to_owned())
    })
}

/// Puts what the parser did not understand in the place of what was concluded from its guesses.
fn report_syntax(reader: &mut Reader<'_>, errors: &[toml::de::Error], end: usize) {
    let spans: Vec<_> = errors.iter().map(|e| e.span().unwrap_or(end..end)).collect();
    let first = spans.iter().map(|span| span.start).min().unwrap_or(end);
    // What stands before the first slip is certain; behind it the parser guesses.
    reader.problems.retain(|problem| match &problem.origin {
        Origin::File(spot) => spot.span.end <= first,
        Origin::Variable { .. } => true,
        Origin::Default => false,
    });
    let mut lines = BTreeSet::new();
    let errors = errors.iter().zip(spans);
    // One slip makes the parser stumble several times on its line.
    let slips =
        errors.filter(|(_, span)| lines.insert(reader.source.map(|source| source.line_at(span.start))));
    let slips: Vec<_> = slips.take(MOST_PROBLEMS).collect();
    for (error, span) in slips {
        let origin = reader.in_file(span);
        let problem = Problem::new("this is not TOML", origin).expected(syntax_words(error));
        reader.problems.push(problem);
    }
}

/// The parser's words, but for two common slips.
fn syntax_words(error: &toml::de::Error) -> String {
    match error.message().strip_prefix("string values must be quoted") {
        Some(_) if error.span().is_some_and(|span| span.is_empty()) => "a value is missing".into(),
        Some(_) => "text has to stand in quotes".into(),
        None => error.message().to_owned(),
    }
}

fn hash(source: Option<&ConfigText>, overrides: &Overrides) -> String {
    let mut hasher = Sha256::new();
    hasher.update(source.map_or("", |source| source.hash.as_str()));
    let Overrides {
        keys,
        server,
        server_port,
        backend,
        node,
    } = overrides;
    for variable in keys
        .values()
        .chain(server)
        .chain(server_port)
        .chain(backend)
        .chain(node)
    {
        for part in [&variable.name, &variable.value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hex::encode(hasher.finalize())
}

impl Document<'_, '_> {
    fn read(&mut self, overrides: &Overrides) -> Option<Spec> {
        let spec = Spec::read(self);
        let backends = self.backends(overrides.backend.as_ref());
        let forwards = self.forwards();
        let mut spec = spec?;
        (spec.backends, spec.forwards) = (backends, forwards);
        self.role(&mut spec.role, overrides);
        if let Some(variable) = &overrides.server_port {
            self.server_port(&mut spec, variable);
        }
        Some(spec)
    }

    /// `VPC_SERVER_ENABLED` and `VPC_NODE_NAME` add to the role.
    fn role(&mut self, role: &mut Role, overrides: &Overrides) {
        if let Some(variable) = &overrides.server {
            match variable.value.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => {
                    if !role.server {
                        role.server = true;
                        self.origin("role", variable);
                        self.origin(check::SERVER_ROLE, variable);
                    }
                }
                "false" | "0" | "no" | "off" => {}
                _ => self.reader.problems.push(
                    Problem::new(
                        "`VPC_SERVER_ENABLED` has a value that cannot be used",
                        variable.origin(),
                    )
                    .key("role")
                    .expected("expected `true` or `false`"),
                ),
            }
        }
        if let (Some(variable), false) = (&overrides.node, role.node) {
            role.node = true;
            self.origin("role", variable);
            self.origin(check::NODE_ROLE, variable);
        }
    }

    fn origin(&mut self, key: &str, variable: &Variable) {
        self.reader.origins.insert(key.into(), variable.origin());
    }

    /// `VPC_SERVER_PORT` is the port of `server.headscale_listen` only.
    fn server_port(&mut self, spec: &mut Spec, variable: &Variable) {
        const KEY: &str = "server.headscale_listen";
        if self.reader.variables.contains_key(KEY) {
            return; // The variable for the whole address says more.
        }
        match crate::names::parse_port(&variable.value) {
            Ok(port) => {
                spec.server.headscale_listen.set_port(port);
                self.origin(KEY, variable);
            }
            Err(_) => self.reader.problems.push(
                Problem::new(
                    "`VPC_SERVER_PORT` has a value that cannot be used",
                    variable.origin(),
                )
                .key(KEY)
                .expected(format!("expected {}", Int::<1, 65535>::expects())),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::SECTIONS;
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn every_default_can_be_read() {
        for section in SECTIONS {
            for key in section.keys {
                let Some(default) = key.default else { continue };
                let path = section.path(key);
                let text = match section.name {
                    "" => format!("{} = {default}\n", key.name),
                    "backends" => format!("[[backends]]\nupstream = \"a:1\"\n{} = {default}\n", key.name),
                    "forwards" => format!(
                        "[[forwards]]\nlisten = \"127.0.0.1:1\"\ntarget_app = \"{}\"\n{} = {default}\n",
                        "0".repeat(40),
                        key.name
                    ),
                    name => format!("[{name}]\n{} = {default}\n", key.name),
                };
                let loaded = load(Some(&ConfigText::new("vpc.toml", text)), &env(&[]))
                    .unwrap_or_else(|problems| panic!("{path}\n{problems}"));
                if !section.many {
                    assert_eq!(loaded.spec, Spec::default(), "{path}");
                }
            }
        }
    }

    #[test]
    fn the_environment_alone_is_a_configuration() {
        let loaded = load(
            None,
            &env(&[
                ("VPC_SERVER_ENABLED", "true"),
                ("VPC_NODE_NAME", "db-1"),
                ("VPC_NODE_TYPE", ""),
                (
                    "VPC_ALLOWED_APPS",
                    "aa00000000000000000000000000000000000001, AA00000000000000000000000000000000000002",
                ),
                ("VPC_SERVER_PORT", "8443"),
                ("MESH_BACKEND", "127.0.0.1:27017"),
                ("VPC__MESH__HTTP_LISTEN", "0.0.0.0:8081"),
                ("VPC__VPN__NAMESERVERS", "9.9.9.9,8.8.8.8"),
                ("PATH", "/bin"),
            ]),
        )
        .unwrap_or_else(|problems| panic!("{problems}"));
        let spec = loaded.spec.clone();
        assert_eq!(
            spec.role,
            Role {
                server: true,
                node: true
            }
        );
        assert_eq!(spec.node.name.unwrap().as_str(), "db-1");
        assert_eq!(spec.node.node_type, None);
        assert_eq!(spec.server.headscale_listen.to_string(), "0.0.0.0:8443");
        assert_eq!(spec.backends.len(), 1);
        assert_eq!(spec.backends[0].upstream[0].to_string(), "127.0.0.1:27017");
        assert_eq!(spec.vpn.nameservers.len(), 2);
        assert_eq!(loaded.source("backends[0].upstream"), "MESH_BACKEND");
        assert_eq!(loaded.source("mesh.http_listen"), "VPC__MESH__HTTP_LISTEN");
        assert_eq!(loaded.source("mesh.https_listen"), "default");
    }
}
