//! A `vpc.toml` to begin with: every key, explained, with its default.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::codec::Codec;
use super::keys::SECTIONS;
use super::load::load;
use super::problem::Problems;
use super::schema::SCHEMA_FILE;
use super::table::{Key, SectionInfo};
use super::values::Role;

/// Writes a starter file for a role: each key with its default commented out, what the role needs filled in.
///
/// With an environment, what it sets is written down, so that the variables can go; its role is used where none is
/// given.
pub fn starter(role: Option<Role>, env: Option<&BTreeMap<String, String>>) -> Result<String, Problems> {
    let mut set = BTreeMap::new();
    let mut backends = 0;
    let mut forwards = 0;
    let mut final_role = role.unwrap_or_default();
    if let Some(env) = env {
        let loaded = load(None, env)?;
        final_role = role.unwrap_or(loaded.spec.role);
        backends = loaded.spec.backends.len();
        forwards = loaded.spec.forwards.len();
        let values = loaded.spec.values().into_iter();
        set.extend(values.filter(|(key, _)| loaded.source(key) != "default"));
    }
    set.insert("role".to_owned(), Role::toml(&final_role));
    set.insert("version".to_owned(), "1".to_owned());
    if final_role.server {
        // An empty list lets nobody in: safe until it is filled.
        set.entry("allowed_apps".to_owned()).or_insert("[]".to_owned());
    }
    if final_role.node {
        set.entry("node.name".to_owned())
            .or_insert("\"node-1\"".to_owned());
    }

    let mut out = format!(
        "#:schema ./{SCHEMA_FILE}\n\
         # What this machine is. Every key is here; those behind a `#` have the default shown.\n\
         # `dstack-vpc check` finds mistakes, `dstack-vpc plan` shows what a change would do.\n"
    );
    for section in SECTIONS {
        let count = match section.name {
            "backends" => backends,
            _ => forwards,
        };
        if !section.many {
            if !section.name.is_empty() {
                comment(&mut out, &section.about());
                let _ = writeln!(out, "[{}]", section.name);
            }
            keys(&mut out, section, |key| set.get(&section.path(key)).cloned());
        } else if count == 0 {
            comment(&mut out, &section.about());
            let _ = writeln!(out, "# [[{}]]", section.name);
            keys(&mut out, section, |_| None);
        } else {
            comment(&mut out, &section.about());
            for i in 0..count {
                let _ = writeln!(out, "[[{}]]", section.name);
                keys(&mut out, section, |key| {
                    set.get(&format!("{}[{i}].{}", section.name, key.name)).cloned()
                });
            }
        }
    }
    Ok(out)
}

fn keys(out: &mut String, section: &SectionInfo, set: impl Fn(&Key) -> Option<String>) {
    for key in section.keys {
        comment(out, &key.about());
        let _ = match set(key) {
            Some(value) => writeln!(out, "{} = {value}", key.name),
            None => writeln!(
                out,
                "# {} = {}",
                key.name,
                key.default.or(key.example).unwrap_or("\"\"")
            ),
        };
    }
}

/// A paragraph of comment, wrapped, after an empty line.
fn comment(out: &mut String, text: &str) {
    const WIDTH: usize = 100;
    out.push('\n');
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ConfigText, Spec};

    fn reads_back(text: &str) -> Spec {
        match load(Some(&ConfigText::new("vpc.toml", text)), &BTreeMap::new()) {
            Ok(loaded) => loaded.spec,
            Err(problems) => panic!("{problems}\n{text}"),
        }
    }

    #[test]
    fn a_starter_loads_for_every_role() {
        for (server, node) in [(false, false), (true, false), (false, true), (true, true)] {
            let role = Role { server, node };
            let text = starter(Some(role), None).unwrap();
            assert_eq!(reads_back(&text).role, role);
        }
    }

    #[test]
    fn every_commented_key_is_the_default() {
        let uncommented: String = starter(None, None)
            .unwrap()
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key)
                    if key.starts_with("[[")
                        || key.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) =>
                {
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let mut spec = reads_back(&uncommented);
        assert_eq!(spec.backends.len(), 1, "{uncommented}");
        assert_eq!(spec.forwards.len(), 1, "{uncommented}");
        spec.backends.clear();
        spec.forwards.clear();
        assert_eq!(spec, Spec::default());
    }

    #[test]
    fn what_the_environment_sets_is_written_down() {
        let env: BTreeMap<String, String> = [
            ("VPC_SERVER_ENABLED", "true"),
            ("VPC_ALLOWED_APPS", "any"),
            ("VPC_NODE_NAME", "db-1"),
            ("VPC_NODE_TYPE", "mongodb"),
            ("VPC_SERVER_PORT", "9000"),
            ("MESH_BACKEND", "10.0.0.1:80,10.0.0.2:80"),
            ("DSTACK_AGENT_ADDRESS", "unix:/run/x.sock"),
            ("DSTACK_GATEWAY_DOMAIN", "apps.example.com"),
            ("VPC__LOG__LEVEL", "debug"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let text = starter(None, Some(&env)).unwrap();
        assert_eq!(reads_back(&text), load(None, &env).unwrap().spec);
    }
}
