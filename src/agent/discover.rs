//! Where the guest agent listens.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::spec::{AgentAddr, AgentChoice};

/// Sockets of the agent by platform version: up to 0.5.5 (and where it is mounted so), in between, from 0.5.6.
pub const SOCKETS: [&str; 3] = [
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
];

/// The variable that the platform's simulator sets: a path or a URL.
pub const SIMULATOR_VARIABLE: &str = "DSTACK_SIMULATOR_ENDPOINT";

/// An address and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    pub addr: AgentAddr,
    /// In words, e.g. `$DSTACK_SIMULATOR_ENDPOINT`.
    pub source: &'static str,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAgent {
    #[error("no guest agent: there is no socket at {}. {}", list(.looked), advice(.not_sockets))]
    NoSocket {
        looked: Vec<PathBuf>,
        /// Those that exist and are something else.
        not_sockets: Vec<PathBuf>,
    },
    #[error("${SIMULATOR_VARIABLE} is {value:?}: expected a path or http://host:port")]
    BadSimulator { value: String },
}

/// The address to use now: the choice, else `$DSTACK_SIMULATOR_ENDPOINT`, else the first socket that exists.
pub fn discover(choice: &AgentChoice) -> Result<Discovered, NoAgent> {
    let simulator = std::env::var(SIMULATOR_VARIABLE).ok();
    discover_in(choice, simulator.as_deref(), &SOCKETS.map(PathBuf::from))
}

fn discover_in(
    choice: &AgentChoice,
    simulator: Option<&str>,
    sockets: &[PathBuf],
) -> Result<Discovered, NoAgent> {
    if let AgentChoice::At(addr) = choice {
        return Ok(Discovered {
            addr: addr.clone(),
            source: "dstack.agent",
        });
    }
    if let Some(value) = simulator.map(str::trim).filter(|value| !value.is_empty()) {
        let addr = if value.starts_with('/') {
            Ok(AgentAddr::Unix(value.into()))
        } else {
            value.parse()
        };
        return match addr {
            Ok(addr) => Ok(Discovered {
                addr,
                source: "$DSTACK_SIMULATOR_ENDPOINT",
            }),
            Err(_) => Err(NoAgent::BadSimulator {
                value: value.to_owned(),
            }),
        };
    }
    let kind = |path: &Path| std::fs::metadata(path).map(|m| m.file_type());
    match sockets
        .iter()
        .find(|path| kind(path).is_ok_and(|kind| kind.is_socket()))
    {
        Some(path) => Ok(Discovered {
            addr: AgentAddr::Unix(path.clone()),
            source: "the socket exists",
        }),
        None => Err(NoAgent::NoSocket {
            looked: sockets.to_vec(),
            not_sockets: sockets
                .iter()
                .filter(|path| kind(path).is_ok())
                .cloned()
                .collect(),
        }),
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

fn advice(not_sockets: &[PathBuf]) -> String {
    match not_sockets {
        [] => "Mount the guest agent's socket into the container, or set dstack.agent".to_owned(),
        // Docker makes a folder where a bind mount's source is missing.
        _ => format!(
            "{} is not a socket: the host has none there that could be mounted. Mount the one it has, or set \
             dstack.agent",
            list(not_sockets)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_then_the_simulator_then_the_first_socket() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| dir.path().join(name));
        let auto = AgentChoice::Auto;
        let unix = |path: &Path| AgentAddr::Unix(path.to_owned());

        let error = discover_in(&auto, None, &paths).unwrap_err().to_string();
        assert!(error.contains("Mount the guest agent's socket"), "{error}");

        std::fs::create_dir(&paths[0]).unwrap();
        let error = discover_in(&auto, None, &paths).unwrap_err().to_string();
        assert!(error.contains("a is not a socket"), "{error}");

        let _b = std::os::unix::net::UnixListener::bind(&paths[1]).unwrap();
        let _c = std::os::unix::net::UnixListener::bind(&paths[2]).unwrap();
        assert_eq!(discover_in(&auto, None, &paths).unwrap().addr, unix(&paths[1]));
        assert_eq!(
            discover_in(&auto, Some(""), &paths).unwrap().addr,
            unix(&paths[1])
        );
        assert_eq!(
            discover_in(&auto, Some("/x.sock"), &paths).unwrap().addr,
            unix(Path::new("/x.sock"))
        );
        let http: AgentAddr = "http://127.0.0.1:8090".parse().unwrap();
        assert_eq!(
            discover_in(&auto, Some("http://127.0.0.1:8090/"), &paths)
                .unwrap()
                .addr,
            http
        );
        assert!(matches!(
            discover_in(&auto, Some("ftp://x"), &paths),
            Err(NoAgent::BadSimulator { .. })
        ));
        let chosen = AgentChoice::At(http.clone());
        assert_eq!(discover_in(&chosen, Some("/x.sock"), &paths).unwrap().addr, http);
    }
}
