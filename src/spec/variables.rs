//! The environment: which variables set which keys.

use std::collections::BTreeMap;

use super::document::example;
use super::keys::SECTIONS;
use super::problem::{Origin, Problem};
use super::suggest::{LONGEST_KEY, did_you_mean};
use super::table::Variable;

/// A variable with a name of its own.
#[derive(Debug)]
pub struct Alias {
    /// Its name.
    pub name: &'static str,
    /// The key it sets.
    pub key: &'static str,
    /// What it does, where that is more than setting the key.
    pub about: Option<&'static str>,
}

/// Every variable with a name of its own, as existing app composes use them.
pub const ALIASES: &[Alias] = &[
    Alias {
        name: "VPC_SERVER_ENABLED",
        key: "role",
        about: Some("`true` adds `server` to the role; `false` changes nothing"),
    },
    Alias {
        name: "VPC_NODE_NAME",
        key: "node.name",
        about: Some("also adds `node` to the role"),
    },
    Alias {
        name: "VPC_ALLOWED_APPS",
        key: "allowed_apps",
        about: Some("`any`, or app ids separated by commas"),
    },
    Alias {
        name: "VPC_SERVER_APP_ID",
        key: "node.server_app_id",
        about: None,
    },
    Alias {
        name: "VPC_NODE_TYPE",
        key: "node.type",
        about: None,
    },
    Alias {
        name: "VPC_SERVER_URL",
        key: "server.url",
        about: None,
    },
    Alias {
        name: "VPC_SERVER_PORT",
        key: "server.headscale_listen",
        about: Some("its port only"),
    },
    Alias {
        name: "MESH_BACKEND",
        key: "backends",
        about: Some(
            "the `upstream` of the backend named `default`, else of the one with server name `_`; with neither, adds such a backend",
        ),
    },
    Alias {
        name: "DSTACK_GATEWAY_DOMAIN",
        key: "dstack.gateway_domain",
        about: None,
    },
    Alias {
        name: "DSTACK_AGENT_ADDRESS",
        key: "dstack.agent",
        about: None,
    },
];

/// What the environment says, not yet read.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// By key path.
    pub(super) keys: BTreeMap<String, Variable>,
    /// `VPC_SERVER_ENABLED`
    pub(super) server: Option<Variable>,
    /// `VPC_SERVER_PORT`
    pub(super) server_port: Option<Variable>,
    /// `MESH_BACKEND`
    pub(super) backend: Option<Variable>,
    /// `VPC_NODE_NAME`
    pub(super) node: Option<Variable>,
}

/// The variable `VPC__SECTION__KEY` of a key path.
pub fn variable_of(path: &str) -> String {
    format!("VPC__{}", path.replace('.', "__").to_ascii_uppercase())
}

fn concerns_us(name: &str) -> bool {
    name.starts_with("VPC_") || ALIASES.iter().any(|alias| alias.name == name)
}

/// Every key that a `VPC__` variable can set.
fn paths() -> impl Iterator<Item = String> {
    let single = SECTIONS.iter().filter(|section| !section.many);
    let many = SECTIONS
        .iter()
        .filter(|section| section.many)
        .map(|section| section.name.to_owned());
    single
        .flat_map(|section| section.keys.iter().map(|key| section.path(key)))
        .chain(many)
}

/// Sorts the variables out: what sets what, what is wrong, and what looks wrong.
pub(super) fn sort_out(env: &BTreeMap<String, String>) -> (Overrides, Vec<Problem>) {
    let mut found = Overrides::default();
    let mut problems = Vec::new();
    let names: BTreeMap<String, String> = paths().map(|path| (variable_of(&path), path)).collect();
    for (name, value) in env {
        let value = value.trim();
        if value.is_empty() || !concerns_us(name) {
            continue;
        }
        let variable = Variable {
            name: name.clone(),
            value: value.to_owned(),
        };
        if let Some(path) = names.get(name) {
            if let Some(other) = found.keys.insert(path.clone(), variable) {
                problems.push(
                    Problem::new(
                        format!("`{}` and `{name}` both set `{path}`", other.name),
                        other.origin(),
                    )
                    .key(path)
                    .expected(format!("`{name}` is used"))
                    .warning(),
                );
            }
        } else if name.starts_with("VPC__") {
            problems.push(unknown(&variable, &names));
        } else if let Some(alias) = ALIASES.iter().find(|alias| alias.name == name) {
            match alias.name {
                "VPC_SERVER_ENABLED" => found.server = Some(variable),
                "VPC_SERVER_PORT" => found.server_port = Some(variable),
                "MESH_BACKEND" => found.backend = Some(variable),
                _ => {
                    if alias.name == "VPC_NODE_NAME" {
                        found.node = Some(variable.clone());
                    }
                    found.keys.insert(alias.key.to_owned(), variable);
                }
            }
        } else if let Some(help) = meant(name, &names) {
            problems.push(
                Problem::new(format!("the variable `{name}` is not read"), variable.origin())
                    .help(help)
                    .warning(),
            );
        }
    }
    (found, problems)
}

/// What a variable that is not read was most likely meant to be; `None`: it is somebody else's.
fn meant(name: &str, names: &BTreeMap<String, String>) -> Option<String> {
    /// Most of two names is the same words: a third of their letters would make one of the other.
    const SLIPS: usize = 2;
    if name.len() > LONGEST_KEY {
        return None;
    }
    let known = ALIASES.iter().map(|alias| alias.name);
    let near = known
        .chain(names.keys().map(String::as_str))
        // With one underscore where two belong, too.
        .map(|known| {
            (
                strsim::damerau_levenshtein(name, &known.replace("__", "_")),
                known,
            )
        })
        .filter(|(slips, _)| *slips <= SLIPS)
        .min_by_key(|(slips, _)| *slips);
    if let Some((_, near)) = near {
        return Some(format!("did you mean `{near}`?"));
    }
    let word = name.split('_').nth(1)?.to_ascii_lowercase();
    let section = SECTIONS.iter().find(|section| section.name == word)?;
    Some(match section.many {
        true => format!("{} are set all at once: {}", section.name, example(section)),
        false => format!(
            "a key of [{word}] is set by a variable such as `{}`",
            variable_of(&section.path(section.keys.first()?))
        ),
    })
}

fn unknown(variable: &Variable, names: &BTreeMap<String, String>) -> Problem {
    let name = &variable.name;
    let upper = name.to_ascii_uppercase();
    let prefix = format!("{upper}__");
    let help = if names.contains_key(&upper) {
        Some(format!("did you mean `{upper}`?"))
    } else if let Some(example) = names.keys().find(|known| known.starts_with(&prefix)) {
        Some(format!(
            "this is a section; set one of its keys, such as `{example}`"
        ))
    } else if let Some(list) = SECTIONS
        .iter()
        .find(|section| section.many && name.starts_with(&format!("{}__", variable_of(section.name))))
    {
        Some(format!("{} are set all at once: {}", list.name, example(list)))
    } else {
        did_you_mean(name, names.keys().map(String::as_str))
    };
    Problem::new(
        format!("the variable `{name}` sets no key"),
        Origin::Variable {
            name: name.clone(),
            value: variable.value.clone(),
        },
    )
    .help(help.unwrap_or_else(|| "`dstack-vpc explain` lists every key".into()))
}
