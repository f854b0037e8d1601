//! A container as a compose file describes it: its environment, its mounts and its files, on a host that has nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dstack_vpc::agent::discover::SOCKETS;

use crate::common::machine::{Machine, Plan, front, has_nginx};
use crate::common::netns::{Host, Switch};
use crate::compose::{Compose, Filled, Service};
use crate::site::{Id, Site};

/// One machine of an example.
pub(crate) struct Member {
    pub(crate) id: Id,
    pub(crate) host: Host,
    pub(crate) machine: Machine,
}

/// Who a machine is whose app id an example names.
pub(crate) fn app(app: &str, number: u8) -> Id {
    Id {
        app: app.to_owned(),
        instance: format!("{}{number:02x}", &app[2..]),
    }
}

/// The app ids that stand in the examples end in these.
pub(crate) fn example(digit: char) -> Id {
    app(&format!("5e44e4{digit:0>34}"), 1)
}

/// A host with an empty `/run` but for the guest agent's socket, where the platform has it.
pub(crate) async fn host(site: &Site, name: &str, id: &Id) -> Host {
    let host = bare_host(site, name, id).await;
    mount(&host, &site.agent_socket(name), SOCKETS[0]).await;
    host
}

async fn bare_host(site: &Site, name: &str, id: &Id) -> Host {
    let host = site.host(name, id).await;
    must(&host, "mount -t tmpfs -o mode=755 tmpfs /run").await;
    host
}

/// `examples/<name>`, word for word, on such a host.
pub(crate) fn file(site: &Site, host: &Host, name: &str) -> Plan {
    let text = fs::read_to_string(crate::compose::examples().join(name)).expect(name);
    let is_server = text.contains("role = \"server");
    let mut plan = Plan::in_host(host, text);
    plan.env = place(site, is_server);
    plan
}

/// What is other here than where the examples are for: the folder of the host's files (there is no `/dstack`), who vouches
/// for the gateway, who resolves names, and the front where `FRONT` names another one.
fn place(site: &Site, is_server: bool) -> Vec<(String, String)> {
    let mut env = vec![
        (
            "VPC__DSTACK__HOST_SHARED_DIR".to_owned(),
            site.dir.path().display().to_string(),
        ),
        ("SSL_CERT_FILE".to_owned(), site.ca()),
    ];
    if !has_nginx() {
        env.push(("VPC__MESH__FRONT".to_owned(), front()));
    }
    if is_server {
        env.push(("VPC__VPN__NAMESERVERS".to_owned(), Switch::ADDRESS.to_string()));
    }
    env
}

/// The container `dstack-vpc` of a compose.
pub(crate) async fn start(site: &Site, name: &str, id: &Id, compose: &Compose, filled: Filled<'_>) -> Member {
    let (host, plan) = prepare(site, name, id, compose, filled).await;
    Member {
        id: id.clone(),
        machine: plan.spawn(),
        host,
    }
}

/// The same, not started yet: with its environment, its mounts, and what is other here.
pub(crate) async fn prepare(
    site: &Site,
    name: &str,
    id: &Id,
    compose: &Compose,
    filled: Filled<'_>,
) -> (Host, Plan) {
    let service = compose.ours();
    let host = bare_host(site, name, id).await;
    let environment = service.environment(filled);
    let mut plan = Plan::in_host(&host, String::new());
    plan.contained = true;
    plan.env = place(site, environment.contains_key("VPC_SERVER_ENABLED"));
    plan.env.extend(environment);
    for volume in &service.volumes {
        let (source, target) = volume.split_once(':').expect("SOURCE:TARGET");
        if SOCKETS.contains(&source) {
            mount(&host, &site.agent_socket(name), target).await;
        }
    }
    write_configs(&host, compose, service).await;
    for pair in &service.extra_hosts {
        let (name, address) = pair.split_once(':').expect("NAME:ADDRESS");
        name_on(&host, name, address).await;
    }
    // They run before, so their names are known.
    for name in service.depends_on.names() {
        name_on(&host, name, "127.0.0.1").await;
    }
    (host, plan)
}

/// The files that a service gets from the compose itself.
pub(crate) async fn write_configs(host: &Host, compose: &Compose, service: &Service) {
    for mounted in &service.configs {
        let source = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(&source, compose.config(&mounted.source)).expect("written");
        fs::set_permissions(&source, PermissionsExt::from_mode(0o444)).expect("chmod");
        let folder = Path::new(&mounted.target).parent().expect("a folder");
        // /etc is the host's own, so it can be copied there.
        assert!(folder.starts_with("/etc"), "{mounted:?}");
        must(host, &format!("mkdir -p {}", folder.display())).await;
        must(
            host,
            &format!("cp -p {} {}", source.path().display(), mounted.target),
        )
        .await;
    }
}

/// What a container finds at `target` is what lies at `source`.
pub(crate) async fn mount(host: &Host, source: &Path, target: &str) {
    let make = match source.is_dir() {
        true => "mkdir -p",
        false => "touch",
    };
    must(host, &format!("{make} {target}")).await;
    must(host, &format!("mount --bind {} {target}", source.display())).await;
}

/// As the runtime's resolver, or `extra_hosts`, has it.
pub(crate) async fn name_on(host: &Host, name: &str, address: &str) {
    let script = format!("echo {address} {name} >> /etc/hosts");
    host.inside
        .tell(&["sh", "-c", &script])
        .await
        .expect("a private /etc/hosts");
}

pub(crate) async fn must(host: &Host, words: &str) -> String {
    let words: Vec<_> = words.split(' ').collect();
    host.inside
        .tell(&words)
        .await
        .unwrap_or_else(|why| panic!("{why}"))
}
