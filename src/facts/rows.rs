//! The facts as a table, for `explain`.

use std::time::{Duration, SystemTime};

use super::{Fact, Facts, Installed, Version};

/// One fact, as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// E.g. `app_id`, `programs.nginx`.
    pub key: &'static str,
    /// `unknown` and `not installed` for what is not there.
    pub value: String,
    /// Empty for what is not there.
    pub source: String,
    /// Since it was last heard.
    pub age: Option<Duration>,
}

impl Facts {
    /// Every fact, also those that are missing, in a fixed order.
    pub fn rows(&self) -> Vec<Row> {
        let installed = |i: &Installed| format!("{} {}", i.path.display(), i.version);
        let programs = &self.programs;
        let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let machine = |key, value| Row {
            key,
            value,
            source: "this machine".to_owned(),
            age: None,
        };
        vec![
            row("agent", &self.agent, "unknown", ToString::to_string),
            row("app_id", &self.app_id, "unknown", ToString::to_string),
            row("instance_id", &self.instance_id, "unknown", ToString::to_string),
            row("gateway", &self.gateway, "unknown", ToString::to_string),
            row("identity", &self.identity, "none", |i| {
                i.dir.display().to_string()
            }),
            row("derp_map", &self.derp_map, "none", |map| {
                format!("{} regions", map.regions())
            }),
            row("programs.nginx", &programs.nginx, "not installed", installed),
            row(
                "programs.supervisord",
                &programs.supervisord,
                "not installed",
                installed,
            ),
            row(
                "programs.headscale",
                &programs.headscale,
                "not installed",
                installed,
            ),
            row(
                "programs.tailscaled",
                &programs.tailscaled,
                "not installed",
                installed,
            ),
            row(
                "programs.tailscale",
                &programs.tailscale,
                "not installed",
                installed,
            ),
            machine("host.root", yes_no(self.host.root)),
            machine(
                "host.web_user",
                match &self.host.web_user {
                    Some((user, group)) => format!("{user}:{group}"),
                    None => "none of nginx, www-data, nobody".to_owned(),
                },
            ),
            machine("host.tun", yes_no(self.host.tun)),
            machine("host.ipv6", yes_no(self.host.ipv6)),
        ]
    }
}

fn row<T>(key: &'static str, fact: &Option<Fact<T>>, missing: &str, show: impl Fn(&T) -> String) -> Row {
    match fact {
        Some(fact) => Row {
            key,
            value: show(&fact.value),
            source: fact.source.clone(),
            age: Some(SystemTime::now().duration_since(fact.at).unwrap_or_default()),
        },
        None => Row {
            key,
            value: missing.to_owned(),
            source: String::new(),
            age: None,
        },
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Version(0, 0, 0) => f.write_str("(unknown version)"),
            Version(major, minor, patch) => write!(f, "{major}.{minor}.{patch}"),
        }
    }
}
