//! What holds of an example before it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use dstack_vpc::agent::discover::SOCKETS;
use dstack_vpc::names::Host as Name;
use dstack_vpc::spec::{self, ConfigText, Front, Loaded, Protocol, Spec};

use crate::common::{binary, run};
use crate::compose::{Compose, Filled, all, examples};

const PIN: &str = "@sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// What is needed to fill in what has no default.
const FILLED: Filled<'_> = &[
    ("NODE_NAME", "db-1"),
    ("VPC_SERVER_APP_ID", "5e44e40000000000000000000000000000000003"),
    ("VPC_ALLOWED_APPS", "5e44e40000000000000000000000000000000001"),
];

fn load(compose: &Compose) -> Loaded {
    let service = compose.ours();
    let text = service
        .configs
        .iter()
        .find(|it| it.target == "/etc/dstack-vpc/vpc.toml");
    let text = text.map(|it| ConfigText::new(&*it.target, compose.config(&it.source)));
    let loaded = spec::load(text.as_ref(), &service.environment(FILLED));
    loaded.unwrap_or_else(|problems| panic!("{problems}"))
}

/// Those that are not of the predecessor.
fn present() -> impl Iterator<Item = String> {
    all().into_iter().filter(|name| name != "migration/before.yaml")
}

fn toml(name: &str) -> Loaded {
    let text = spec::read(&examples().join(name)).unwrap_or_else(|error| panic!("{error}"));
    spec::load(Some(&text), &BTreeMap::new()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn tomls() -> BTreeSet<String> {
    let entries = std::fs::read_dir(examples()).expect("examples");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name")
    });
    names.filter(|name| name.ends_with(".toml")).collect()
}

#[test]
fn the_table_names_each_example_and_nothing_else() {
    let readme = std::fs::read_to_string(examples().join("README.md")).expect("README.md");
    let links = readme
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().expect("a link"));
    let linked: BTreeSet<_> = links.map(str::to_owned).collect();
    for link in &linked {
        assert!(examples().join(link).exists(), "{link}");
    }
    let mut wanted = tomls();
    wanted.extend(all().into_iter().filter(|name| !name.starts_with("migration/")));
    let listed = |name: &String| name.ends_with(".toml") || name.ends_with(".yaml");
    assert_eq!(linked.into_iter().filter(listed).collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn a_file_and_its_compose_say_the_same() {
    let mut pairs = 0;
    for name in tomls() {
        let compose = Compose::read(&format!("compose/{}", name.replace(".toml", ".yaml")));
        let mut environment = compose.ours().environment(&[]);
        for value in environment.values_mut() {
            *value = value.replace("app:", "127.0.0.1:");
        }
        let said = spec::load(None, &environment).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(said.spec, toml(&name).spec, "{name}");
        pairs += 1;
    }
    assert!(pairs >= 10);
    let mounted = Compose::read("compose/vpc-toml.yaml");
    assert_eq!(load(&mounted).spec, toml("several-backends.toml").spec);
}

#[test]
fn both_clusters_find_their_members_in_the_same_way() {
    let [etcd, mongodb] = ["etcd", "mongodb"].map(|name| Compose::read(&format!("{name}/compose.yaml")));
    assert_eq!(etcd.config("names"), mongodb.config("names"));
}

#[test]
fn a_compose_grants_what_its_role_needs_and_no_more() {
    for name in present() {
        let compose = Compose::read(&name);
        let Loaded { spec, warnings, .. } = load(&compose);
        assert!(warnings.is_empty(), "{name}: {warnings}");
        let ours = compose.ours();
        assert_eq!(
            ours.image,
            format!("registry.example.com/dstack-vpc{PIN}"),
            "{name}"
        );
        assert_eq!(ours.command, [""; 0], "{name}: `up` is the image's own");
        let node = |wanted: &'static [&'static str]| if spec.role.node { wanted } else { &[] };
        assert_eq!(ours.cap_add, node(&["NET_ADMIN"]), "{name}");
        assert_eq!(ours.devices, node(&["/dev/net/tun"]), "{name}");
        assert!(ours.network_mode.is_none(), "{name}");

        let mounts = ours
            .volumes
            .iter()
            .map(|volume| volume.split_once(':').expect("SOURCE:TARGET"));
        let mounts: BTreeMap<_, _> = mounts.map(|(source, target)| (target, source)).collect();
        assert!(mounts.contains_key(SOCKETS[0]), "{name}");
        let shared = format!("{}:ro", spec.dstack.host_shared_dir.display());
        assert!(mounts.contains_key(&*shared), "{name}");
        assert_eq!(mounts.get("/var/lib/dstack-vpc"), Some(&"vpc"), "{name}");
        assert_eq!(mounts.len(), 3, "{name}");

        let published: BTreeSet<_> = ours.published(FILLED).into_iter().collect();
        let reached = reached(&spec);
        // A node is called by nobody unless it has a backend.
        let may = reached.iter().all(|port| published.contains(port)) || spec.backends.is_empty();
        assert!(
            may && published.is_subset(&reached),
            "{name}: {published:?}, {reached:?}"
        );
        neighbours(&name, &compose, &spec);
    }
}

/// What the gateway leads to.
fn reached(spec: &Spec) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([spec.mesh.https_listen.port()]);
    if spec.role.server {
        ports.insert(spec.server.headscale_listen.port());
    }
    ports.extend(
        spec.backends
            .iter()
            .filter_map(|backend| Some(backend.listen?.port())),
    );
    ports
}

/// What holds of all containers beside ours.
fn neighbours(name: &str, compose: &Compose, spec: &Spec) {
    for (other, service) in &compose.services {
        assert!(!service.privileged, "{name}: {other}");
        let docker = service
            .volumes
            .iter()
            .any(|volume| volume.contains("docker.sock"));
        assert!(!docker, "{name}: {other}");
        let within = service.network_mode.as_deref();
        let known = |it: &str| {
            compose
                .services
                .keys()
                .any(|name| it == format!("service:{name}"))
        };
        assert!(within.is_none_or(known), "{name}: {other}");
        for dependency in service.depends_on.names() {
            assert!(compose.services.contains_key(dependency), "{name}: {other}");
        }
        for volume in &service.volumes {
            let source = volume.split(':').next().expect("a source");
            assert!(
                source.starts_with('/') || compose.volumes.contains_key(source),
                "{name}: {volume}"
            );
        }
        for mounted in &service.configs {
            assert!(
                compose.configs.contains_key(&mounted.source),
                "{name}: {mounted:?}"
            );
        }
        assert!(
            service.dns.is_empty() && service.dns_search.is_empty(),
            "{name}: {other}"
        );
    }
    let ours = compose.ours();
    for upstream in spec.backends.iter().flat_map(|backend| backend.upstream.iter()) {
        let Name::Name(host) = &upstream.host else {
            continue;
        };
        let Some(service) = compose.services.get(host.as_str()) else {
            continue;
        };
        // nginx looks a name up when it starts, and in the VPN Docker's names are not known.
        let known = ours.extra_hosts.contains(&format!("{host}:127.0.0.1"));
        let waits = ours.depends_on.names().contains(&host.as_str());
        let nginx = spec.mesh.front == Front::Nginx
            && spec
                .backends
                .iter()
                .any(|backend| backend.protocol == Protocol::Http);
        assert!(known == service.network_mode.is_some(), "{name}: {host}");
        assert!(known || waits || !nginx, "{name}: nginx has to find {host}");
        assert!(known || !spec.role.node, "{name}: in the VPN nobody finds {host}");
    }
}

/// As somebody would try it at home, where no other container is known: the environment alone, and the file alone.
#[test]
fn check_and_render_take_each_of_them() {
    run(async {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ask = |environment: &BTreeMap<String, String>, file: Option<&Path>, args: &[&str]| {
            let mut command = Command::new(binary());
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default());
            command.envs(environment).arg("--state-dir").arg(dir.path());
            if let Some(file) = file {
                command.arg("--config").arg(file);
            }
            command.args(args);
            tokio::task::spawn_blocking(move || command.output().expect("the dstack-vpc binary"))
        };
        let mounted = dir.path().join("vpc.toml");
        std::fs::write(
            &mounted,
            Compose::read("compose/vpc-toml.yaml").config("vpc.toml"),
        )
        .expect("written");
        let composes = present().map(|name| {
            let environment = Compose::read(&name).ours().environment(FILLED);
            let file = (name == "compose/vpc-toml.yaml").then(|| mounted.clone());
            (name, environment, file)
        });
        let files = tomls().into_iter().map(|name| {
            let file = Some(examples().join(&name));
            (name, BTreeMap::new(), file)
        });
        for (name, environment, file) in composes.chain(files) {
            let check = ask(&environment, file.as_deref(), &["check"]);
            let app = "app_id=5e44e40000000000000000000000000000000009";
            let assumed = [
                "render",
                "--assume",
                app,
                "--assume",
                "gateway_domain=apps.example.com:443",
            ];
            let render = ask(&environment, file.as_deref(), &assumed);
            let (check, render) = tokio::join!(check, render);
            let (check, render) = (check.expect("no panic"), render.expect("no panic"));
            let said = String::from_utf8_lossy(&check.stdout);
            assert_eq!(check.status.code(), Some(0), "{name}: {said}{check:?}");
            assert!(!said.contains("warning"), "{name}: {said}");
            let said = String::from_utf8_lossy(&render.stdout);
            assert_eq!(render.status.code(), Some(0), "{name}: {render:?}");
            let nginx = !environment.contains_key("VPC__MESH__FRONT") && name != "builtin-front.toml";
            assert_eq!(said.contains("# ==> nginx/nginx.conf"), nginx, "{name}: {said}");
        }
    });
}
