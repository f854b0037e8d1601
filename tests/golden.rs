//! What is rendered for each role and option, whole, as it would stand on disk; and the word of each consumer
//! that it would take it. `UPDATE_GOLDEN=1 cargo test --test golden` writes the files anew.

mod rendered;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dstack_vpc::agent::dev::pki::Pki;
use dstack_vpc::desired::{Reader, check_command};
use dstack_vpc::facts::{Facts, Version};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::*;
use rendered::*;

const STATE: &str = "/var/lib/dstack-vpc";

type Case = (&'static str, fn(&mut Spec, &mut Facts));

const CASES: &[Case] = &[
    ("mesh", |_, _| {}),
    ("mesh-no-identity", |_, f| f.identity = None),
    ("mesh-root", |_, f| f.host.root = true),
    ("mesh-root-user-workers", |s, f| {
        f.host.root = true;
        s.nginx.user = Some("www-data".to_owned());
        s.nginx.workers = 3;
        s.nginx.drain_timeout = std::time::Duration::from_millis(1500);
    }),
    ("mesh-user-without-root", |s, _| {
        s.nginx.user = Some("www-data".to_owned())
    }),
    ("mesh-ipv6", |s, _| {
        s.mesh.http_listen = "[::]:80".parse().unwrap();
        s.mesh.https_listen = "[::]:443".parse().unwrap();
        s.mesh.client_listen = "[::1]:8091".parse().unwrap();
        // An IPv4 listener on the number of a `[::]` one: they must not meet.
        s.mesh.auth_listen = "127.0.0.1:80".parse().unwrap();
        s.backends = vec![backend("default", "_", &["[::1]:27017"])];
    }),
    ("mesh-nginx-1.29", |_, f| {
        f.programs.nginx.as_mut().unwrap().value.version = Version(1, 29, 1);
    }),
    ("mesh-nginx-1.18", |_, f| {
        f.programs.nginx.as_mut().unwrap().value.version = Version(1, 18, 0);
    }),
    ("mesh-nothing-installed", |_, f| f.programs = Default::default()),
    ("backends", |s, _| {
        s.backends = vec![
            backend(
                "db",
                "db.internal",
                &["127.0.0.1:27017", "127.0.0.2:27017", "[::1]:27017"],
            ),
            backend("default", "_", &["127.0.0.1:8080"]),
            backend("web", "web.internal", &["127.0.0.1:8081"]),
        ];
    }),
    ("backends-no-default", |s, _| {
        s.backends = vec![backend("db", "db.internal", &["127.0.0.1:27017"])];
    }),
    ("backends-none", |s, _| s.backends.clear()),
    ("server", |s, _| s.role.server = true),
    ("server-with-map", |s, f| {
        s.role.server = true;
        f.derp_map = Some(fact(derp_map("derp1.example.com")));
    }),
    ("server-headscale-0.26", |s, f| {
        s.role.server = true;
        f.programs.headscale.as_mut().unwrap().value.version = Version(0, 26, 1);
    }),
    ("server-nothing-known", |s, f| {
        s.role.server = true;
        f.app_id = None;
        f.gateway = None;
        f.identity = None;
    }),
    ("server-fixed-gateway", |s, f| {
        s.role.server = true;
        f.gateway = Some(fact(Gateway::Fixed("127.0.0.1:8443".parse().unwrap())));
    }),
    ("server-url-within-base-domain", |s, _| {
        s.role.server = true;
        s.server.url = ServerUrl::Is("https://vpn.dstack.internal".parse().unwrap());
    }),
    ("server-public-without-map", |s, _| {
        s.role.server = true;
        s.vpn.derp = Derp::Public;
    }),
    ("server-etcd-json-public", |s, f| {
        s.role.server = true;
        f.derp_map = Some(fact(derp_map("derp1.example.com")));
        s.server.url = ServerUrl::Is("http://10.0.0.1:8080/".parse().unwrap());
        s.registry.store = Store::Etcd;
        s.registry.endpoints = vec!["http://10.0.0.1:2379".parse().unwrap()];
        s.vpn.derp = Derp::Public;
        s.vpn.nameservers.clear();
        s.log.format = LogFormat::Json;
    }),
    ("server-gateway-port", |s, f| {
        s.role.server = true;
        s.server.headscale_listen = "[::]:9000".parse().unwrap();
        f.gateway = Some(fact(Gateway::Domain {
            domain: "apps.example.com".parse().unwrap(),
            port: 8443,
        }));
    }),
    ("node", |s, _| {
        s.role.node = true;
        s.node.name = Some("db-1".parse().unwrap());
    }),
    ("node-userspace-files", |s, f| {
        s.role.node = true;
        s.node.name = Some("db-1".parse().unwrap());
        s.tailscale.port = 41641;
        s.supervisor.output = ChildOutput::Files;
        f.host.tun = false;
    }),
    ("server-node", |s, f| {
        s.role = Role {
            server: true,
            node: true,
        };
        s.node.name = Some("hub".parse().unwrap());
        f.host.root = true;
    }),
];

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn each_case_renders_to_its_golden_files() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let state = StateDir::new(STATE);
    let mut wrong = Vec::new();
    for (case, change) in CASES {
        let (mut spec, mut facts) = (mesh(), facts(&state));
        change(&mut spec, &mut facts);
        let desired = render(&spec, &facts, &state).unwrap();
        let dir = golden_dir().join(case);
        let mut all: Vec<(String, String)> = desired
            .files
            .iter()
            .map(|(name, file)| (name.clone(), String::from_utf8(file.bytes.clone()).unwrap()))
            .collect();
        let rest = (
            &desired.programs,
            &desired.probes,
            &desired.missing,
            &desired.notes,
        );
        all.push(("rest.txt".to_owned(), format!("{rest:#?}\n")));
        if update {
            let _ = fs::remove_dir_all(&dir);
        }
        for (name, text) in &all {
            let path = dir.join(Path::new(name).file_name().unwrap());
            if update {
                fs::create_dir_all(&dir).unwrap();
                fs::write(&path, text).unwrap();
            }
            let golden = fs::read_to_string(&path).unwrap_or_default();
            if golden != *text {
                let diff = similar::TextDiff::from_lines(&golden, text);
                wrong.push(format!("{}\n{}", path.display(), diff.unified_diff()));
            }
        }
        let on_disk = fs::read_dir(&dir).unwrap().count();
        assert_eq!(on_disk, all.len(), "{case}: a file too many or too few");
    }
    assert!(
        wrong.is_empty(),
        "run UPDATE_GOLDEN=1 cargo test --test golden and read the difference\n{}",
        wrong.join("\n")
    );
    let known: BTreeSet<_> = CASES.iter().map(|(case, _)| *case).collect();
    for entry in fs::read_dir(golden_dir()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            known.contains(name.to_str().unwrap()),
            "{name:?} belongs to no case"
        );
    }
}

/// The golden files themselves, below a scratch state directory, before the real checkers.
#[test]
fn each_golden_passes_its_consumers_checker() {
    program("nginx");
    program("headscale");
    program("supervisord");
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::new(scratch.path().join("state"));
    let root = state.root().to_str().unwrap();
    identity(&Pki::new().unwrap(), app(0xaa), &state.identity().join("000001"));
    let mut programs = facts(&state).programs;
    programs.nginx.as_mut().unwrap().value.path = program("nginx");
    programs.headscale.as_mut().unwrap().value.path = program("headscale");

    for (case, _) in CASES {
        let generation = scratch.path().join(case);
        let golden = |name: &str| fs::read_to_string(golden_dir().join(case).join(name));
        for (folder, name) in [
            ("nginx", "nginx.conf"),
            ("headscale", "headscale.yaml"),
            ("supervisor", "supervisord.conf"),
        ] {
            let Ok(text) = golden(name) else { continue };
            let mut text = text.replace(STATE, root);
            if case.contains("nginx-1.29") && folder == "nginx" {
                // Newer than what is installed: these two lines were read in nginx's change log only.
                for newer in ["    proxy_pass_trailers on;\n", "    http2 on;\n"] {
                    assert!(text.contains(newer), "{case}");
                    text = text.replace(newer, "");
                }
            }
            fs::create_dir_all(generation.join(folder)).unwrap();
            fs::write(generation.join(folder).join(name), text).unwrap();
        }
        for dir in [state.run(), state.log(), state.headscale()] {
            fs::create_dir_all(dir).unwrap();
        }
        let work = tempfile::tempdir().unwrap();
        for reader in [Reader::Nginx, Reader::Headscale] {
            let check = check_command(reader, &programs, &generation, work.path())
                .unwrap()
                .unwrap();
            if reader == Reader::Headscale && !generation.join("headscale").exists() {
                continue;
            }
            let argv = &check.command.argv;
            let out = Command::new(&argv[0])
                .args(&argv[1..])
                .envs(check.env)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{case}: {argv:?}\n{said}");
            assert!(!said.contains("[warn]"), "{case}: {said}");
        }
        let parsed = supervisor_parses(&generation.join("supervisor/supervisord.conf"));
        assert!(parsed.contains("dstack-vpc"), "{case}: {parsed}");
        assert!(!state.run().join("nginx.pid").exists() && !state.run().join("nginx").exists());
        assert_eq!(
            fs::read_dir(state.headscale()).unwrap().count(),
            0,
            "{case}: configtest wrote"
        );
    }
}

/// supervisord has no checker, but its own parser can be asked.
fn supervisor_parses(conf: &Path) -> String {
    let script = "
import sys
from supervisor.options import ServerOptions
o = ServerOptions()
o.realize(['-n', '-c', sys.argv[1]])
for g in o.process_group_configs:
    for p in g.process_configs:
        print(p.name, p.command)
";
    let out = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(conf)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
