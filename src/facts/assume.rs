//! Facts that somebody says instead of the machine: `render --assume key=value`.

use crate::names::NotA;
use crate::paths::StateDir;
use crate::spec::Spec;

use super::ask::chosen_gateway;
use super::{Fact, Facts, HostFacts, IdentityFiles, Installed, Programs, Version};

/// The keys that can be assumed.
const KEYS: [&str; 10] = [
    "app_id",
    "instance_id",
    "gateway_domain",
    "agent",
    "nginx",
    "supervisord",
    "headscale",
    "tailscaled",
    "tailscale",
    "root",
];

const SOURCE: &str = "--assume";

/// Why an assumption cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssumeError {
    #[error("--assume {key}={value}: {problem}")]
    BadValue {
        key: String,
        value: String,
        problem: NotA,
    },
    #[error("--assume {key}: there is no such fact; the facts are {}{}", KEYS.join(", "), did_you_mean(.key))]
    UnknownKey { key: String },
}

/// Facts of a machine that is not asked: every program is installed in a recent version (`nginx=none` or
/// `nginx=1.22.1` says otherwise), there is a certificate, and the rest is unknown unless assumed.
pub fn assume(pairs: &[(String, String)], spec: &Spec, state: &StateDir) -> Result<Facts, AssumeError> {
    let program = |path: &str, version| {
        Some(Fact::now(
            Installed {
                path: path.into(),
                version,
            },
            SOURCE,
        ))
    };
    let mut facts = Facts {
        identity: Some(Fact::now(
            IdentityFiles {
                dir: state.identity().join("000001"),
            },
            SOURCE,
        )),
        programs: Programs {
            nginx: program("/usr/sbin/nginx", Version(1, 28, 0)),
            supervisord: program("/usr/bin/supervisord", Version(4, 3, 0)),
            headscale: program("/usr/local/bin/headscale", Version(0, 28, 0)),
            tailscaled: program("/usr/sbin/tailscaled", Version(1, 98, 0)),
            tailscale: program("/usr/bin/tailscale", Version(1, 98, 0)),
        },
        host: HostFacts {
            root: true,
            web_user: Some(("www-data".to_owned(), "www-data".to_owned())),
            tun: true,
            ipv6: true,
        },
        gateway: chosen_gateway(spec),
        ..Facts::default()
    };
    for (key, value) in pairs {
        take(&mut facts, key, value)?;
    }
    Ok(facts)
}

fn take(facts: &mut Facts, key: &str, value: &str) -> Result<(), AssumeError> {
    let programs = &mut facts.programs;
    let result = match key {
        "app_id" => value.parse().map(|id| facts.app_id = Some(Fact::now(id, SOURCE))),
        "instance_id" => value
            .parse()
            .map(|id| facts.instance_id = Some(Fact::now(id, SOURCE))),
        "gateway_domain" => value
            .parse()
            .map(|it| facts.gateway = Some(Fact::now(it, SOURCE))),
        "agent" => value.parse().map(|it| facts.agent = Some(Fact::now(it, SOURCE))),
        "nginx" => take_program(&mut programs.nginx, value),
        "supervisord" => take_program(&mut programs.supervisord, value),
        "headscale" => take_program(&mut programs.headscale, value),
        "tailscaled" => take_program(&mut programs.tailscaled, value),
        "tailscale" => take_program(&mut programs.tailscale, value),
        "root" => value
            .parse()
            .map(|root| facts.host.root = root)
            .map_err(|_| NotA::new("true or false")),
        _ => return Err(AssumeError::UnknownKey { key: key.to_owned() }),
    };
    result.map_err(|problem| AssumeError::BadValue {
        key: key.to_owned(),
        value: value.to_owned(),
        problem,
    })
}

fn take_program(program: &mut Option<Fact<Installed>>, value: &str) -> Result<(), NotA> {
    if value == "none" {
        *program = None;
        return Ok(());
    }
    let version = Version::find(value).ok_or_else(|| NotA::new("a version such as 1.22.1, or none"))?;
    if let Some(fact) = program {
        fact.value.version = version;
    }
    Ok(())
}

fn did_you_mean(key: &str) -> String {
    let near = KEYS
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
    match near {
        Some(near) if strsim::jaro_winkler(near, key) > 0.7 => format!(". Did you mean {near}?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_and_keys_are_known() {
        let mut facts = Facts::default();
        let mut say = |key: &str, value: &str| take(&mut facts, key, value).map_err(|e| e.to_string());
        say("app_id", "AA00000000000000000000000000000000000001").unwrap();
        say("gateway_domain", "fixed/127.0.0.1:9443").unwrap();
        assert_eq!(
            say("gateway_domain", "a b").unwrap_err(),
            "--assume gateway_domain=a b: expected a domain such as apps.example.com:443, or fixed/host:port"
        );
        let unknown = say("appid", "x").unwrap_err();
        assert!(unknown.ends_with("Did you mean app_id?"), "{unknown}");
        assert_eq!(facts.app_id.unwrap().source, "--assume");
    }

    #[test]
    fn programs_can_be_older_or_missing() {
        let mut nginx = Some(Fact::now(
            Installed {
                path: "/n".into(),
                version: Version(9, 9, 9),
            },
            "",
        ));
        take_program(&mut nginx, "1.22.1").unwrap();
        assert_eq!(nginx.as_ref().unwrap().value.version, Version(1, 22, 1));
        assert!(take_program(&mut nginx, "new").is_err());
        take_program(&mut nginx, "none").unwrap();
        assert_eq!(nginx, None);
    }
}
