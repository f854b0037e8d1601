//! A spec and facts to render from, and certificates for what is rendered.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use dstack_vpc::agent::dev::pki::{Issued, LeafRequest, Pki};
use dstack_vpc::desired::{Desired, Launch, RenderError, Templates, desired};
use dstack_vpc::facts::*;
use dstack_vpc::names::AppId;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::*;

pub fn app(n: u8) -> AppId {
    AppId::from_bytes([n; 20])
}

/// The contract's defaults with the one default backend.
pub fn mesh() -> Spec {
    Spec {
        backends: vec![backend("default", "_", &["127.0.0.1:27017"])],
        ..Spec::default()
    }
}

pub fn backend(name: &str, server_name: &str, upstream: &[&str]) -> Backend {
    Backend {
        protocol: dstack_vpc::spec::Protocol::Http,
        listen: None,
        name: name.parse().unwrap(),
        server_name: (server_name != "_").then(|| server_name.parse().unwrap()),
        upstream: Upstream::new(upstream.iter().map(|u| u.parse().unwrap()).collect()).unwrap(),
        allowed_apps: AllowedApps::Any,
    }
}

pub fn fact<T>(value: T) -> Fact<T> {
    Fact {
        value,
        source: "a test".to_owned(),
        at: SystemTime::UNIX_EPOCH,
    }
}

/// Everything known and installed, not root.
pub fn facts(state: &StateDir) -> Facts {
    let installed = |path: &str, version| {
        Some(fact(Installed {
            path: path.into(),
            version,
        }))
    };
    Facts {
        app_id: Some(fact(app(0xaa))),
        gateway: Some(fact(Gateway::Domain {
            domain: "apps.example.com".parse().unwrap(),
            port: 443,
        })),
        identity: Some(fact(IdentityFiles {
            dir: state.identity().join("000001"),
        })),
        programs: Programs {
            nginx: installed("/usr/sbin/nginx", Version(1, 22, 1)),
            supervisord: installed("/usr/bin/supervisord", Version(4, 2, 5)),
            headscale: installed("/usr/local/bin/headscale", Version(0, 29, 3)),
            tailscaled: installed("/usr/sbin/tailscaled", Version(1, 90, 0)),
            tailscale: installed("/usr/bin/tailscale", Version(1, 90, 0)),
        },
        host: HostFacts {
            root: false,
            web_user: Some(("www-data".to_owned(), "www-data".to_owned())),
            tun: true,
            ipv6: true,
        },
        ..Facts::default()
    }
}

/// A public map with one relay, at `host`.
pub fn derp_map(host: &str) -> Arc<DerpMap> {
    let map = serde_json::json!({"Regions": {"1": {
        "RegionID": 1, "RegionCode": "nyc", "RegionName": "New York City",
        "Nodes": [{"Name": "1a", "RegionID": 1, "HostName": host, "IPv4": "192.0.2.1"}],
    }}});
    Arc::new(DerpMap::parse(map.to_string().as_bytes()).unwrap())
}

pub fn launch() -> Launch {
    Launch {
        exe: "/usr/local/bin/dstack-vpc".into(),
        config: Some("/etc/dstack-vpc/vpc.toml".into()),
    }
}

pub fn render(spec: &Spec, facts: &Facts, state: &StateDir) -> Result<Desired, RenderError> {
    desired(spec, facts, state, &launch(), &Templates::builtin())
}

/// Writes the generation to `dir` as apply would stage it.
pub fn write(desired: &Desired, dir: &Path) {
    for (name, file) in &desired.files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &file.bytes).unwrap();
    }
}

/// A certificate for `id`, stored in `dir` under the names that nginx.conf refers to.
pub fn identity(pki: &Pki, id: AppId, dir: &Path) -> Issued {
    let issued = pki.issue(&id, &LeafRequest::both()).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("key.pem"), &issued.key_pem).unwrap();
    std::fs::write(dir.join("chain.pem"), issued.chain_pems[..2].concat()).unwrap();
    std::fs::write(dir.join("ca.pem"), pki.root_pem()).unwrap();
    issued
}

/// The program, or the way to get it.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `make setup`"))
}
