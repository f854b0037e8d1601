//! Compose files, as far as the examples use them: what is not known here is a mistake in the example.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// The variables that whoever deploys it fills in.
pub(crate) type Filled<'a> = &'a [(&'a str, &'a str)];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compose {
    pub(crate) services: BTreeMap<String, Service>,
    #[serde(default)]
    pub(crate) volumes: BTreeMap<String, Option<()>>,
    #[serde(default)]
    pub(crate) configs: BTreeMap<String, Config>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: String,
    pub(crate) restart: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) privileged: bool,
    #[serde(default)]
    pub(crate) cap_add: Vec<String>,
    #[serde(default)]
    pub(crate) devices: Vec<String>,
    #[serde(default)]
    pub(crate) depends_on: DependsOn,
    #[serde(default)]
    pub(crate) dns: Vec<String>,
    #[serde(default)]
    pub(crate) dns_search: Vec<String>,
    #[serde(default)]
    pub(crate) extra_hosts: Vec<String>,
    pub(crate) network_mode: Option<String>,
    #[serde(default)]
    pub(crate) ports: Vec<String>,
    #[serde(default)]
    pub(crate) environment: Environment,
    #[serde(default)]
    pub(crate) volumes: Vec<String>,
    #[serde(default)]
    pub(crate) configs: Vec<Mounted>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Environment {
    Table(BTreeMap<String, String>),
    List(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum DependsOn {
    Names(Vec<String>),
    Conditions(BTreeMap<String, BTreeMap<String, String>>),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mounted {
    pub(crate) source: String,
    pub(crate) target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    content: String,
}

impl Default for Environment {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Default for DependsOn {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl DependsOn {
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Names(names) => names.iter().map(String::as_str).collect(),
            Self::Conditions(conditions) => conditions.keys().map(String::as_str).collect(),
        }
    }
}

impl Compose {
    /// `name` is the path below `examples/`.
    pub(crate) fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(examples().join(name)).expect(name);
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The service that is this program.
    pub(crate) fn ours(&self) -> &Service {
        let names = ["dstack-vpc", "dstack-service"];
        names
            .iter()
            .find_map(|name| self.services.get(*name))
            .expect("the service dstack-vpc")
    }

    /// A config as the container finds it.
    pub(crate) fn config(&self, name: &str) -> String {
        fill(&self.configs[name].content, &[]).expect(name)
    }
}

impl Service {
    /// The whole environment of the container.
    pub(crate) fn environment(&self, filled: Filled<'_>) -> BTreeMap<String, String> {
        let pairs: Vec<(&str, &str)> = match &self.environment {
            Environment::Table(table) => table.iter().map(|(name, value)| (&**name, &**value)).collect(),
            Environment::List(list) => list
                .iter()
                .map(|pair| pair.split_once('=').expect("NAME=VALUE"))
                .collect(),
        };
        let filled = |value| fill(value, filled).unwrap_or_else(|name| panic!("{name} is not given"));
        pairs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), filled(value)))
            .collect()
    }

    /// The ports that are published, as the gateway sees them. Each is the container's own.
    pub(crate) fn published(&self, filled: Filled<'_>) -> Vec<u16> {
        let number = |text: &str| text.parse::<u16>().expect("a port");
        self.ports
            .iter()
            .map(|port| {
                let port = fill(port, filled).expect("filled in");
                let (outside, inside) = port.split_once(':').expect("OUTSIDE:INSIDE");
                assert_eq!(
                    number(outside),
                    number(inside),
                    "the gateway asks for the inner one"
                );
                number(outside)
            })
            .collect()
    }
}

pub(crate) fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// Every compose file, by its path below `examples/`.
pub(crate) fn all() -> Vec<String> {
    let folders = ["compose", "etcd", "mongodb", "migration"];
    let mut found: Vec<_> = folders
        .iter()
        .flat_map(|folder| {
            let entries = std::fs::read_dir(examples().join(folder)).expect(folder);
            entries.map(move |entry| {
                let name = entry.expect("an entry").file_name();
                format!("{folder}/{}", name.to_str().expect("a name"))
            })
        })
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    found.sort();
    found
}

/// `$$`, `${NAME}`, `${NAME:?}` and `${NAME:-else}`; the name of a variable that is needed and not given.
fn fill(text: &str, filled: Filled<'_>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let inner = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let (inner, after) = inner.unwrap_or_else(|| panic!("a lone $ before {after:.20?}"));
        let (name, or) = match inner.split_once(':') {
            None => (inner, None),
            Some((name, "?")) => (name, None),
            Some((name, or)) => (name, or.strip_prefix('-')),
        };
        let given = filled
            .iter()
            .find(|(given, _)| *given == name)
            .map(|(_, value)| *value);
        out += given.or(or).ok_or(name)?;
        rest = after;
    }
    Ok(out + rest)
}

#[test]
fn what_compose_replaces_is_replaced() {
    let filled = [("A", "1")];
    assert_eq!(
        fill("$$x ${A} ${B:-2}${C:-} ${A:?}", &filled).as_deref(),
        Ok("$x 1 2 1")
    );
    assert_eq!(fill("${B}", &filled), Err("B".to_owned()));
    assert_eq!(fill("${B:?}", &filled), Err("B".to_owned()));
}
