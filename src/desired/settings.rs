//! What the built-in parts are to do: the mesh, the API, the node.

use std::collections::BTreeMap;

use super::{ListenerSettings, headscale, nginx, wildcards};
use crate::api::ApiSettings;
use crate::facts::Facts;
use crate::headscale::Access;
use crate::mesh::{Forward, FrontSettings, Leads, MeshSettings, Route, Routes, TcpBackend};
use crate::names::{BackendName, DnsName, SHARED_SPACE};
use crate::node::{NodeSettings, Server};
use crate::page::PageSettings;
use crate::paths::StateDir;
use crate::registry::RegistrySettings;
use crate::spec::{AllowedApps, Front, Protocol, ServerAppId, Spec, Tun};

pub(super) fn listeners(spec: &Spec, facts: &Facts, state: &StateDir) -> ListenerSettings {
    ListenerSettings {
        mesh: mesh(spec, facts, state),
        api: spec.role.server.then(|| api(spec, facts, state)),
        metrics: spec.metrics.listen,
        page: spec.status.listen.map(|listen| PageSettings {
            listen,
            names: spec.status.names.clone(),
        }),
    }
}

/// The node, once it has a name.
pub(super) fn node(spec: &Spec, facts: &Facts) -> Option<NodeSettings> {
    let name = spec.node.name.clone().filter(|_| spec.role.node)?;
    let app_id = facts.app_id.as_ref().map(|fact| fact.value);
    let here = Server::Here {
        api: spec.server.api_listen,
        headscale: spec.server.headscale_listen,
    };
    let server = match spec.node.server_app_id {
        ServerAppId::SelfApp if spec.role.server => here,
        ServerAppId::Is(app) if spec.role.server && Some(app) == app_id => here,
        ServerAppId::Is(app) => Server::App(app),
        ServerAppId::SelfApp => Server::SameApp,
    };
    Some(NodeSettings {
        name,
        node_type: spec.node.node_type.clone(),
        server,
        app_id,
        instance_id: facts.instance_id.as_ref().map(|fact| fact.value),
        mesh: spec.mesh.client_listen,
        tailscale: facts
            .programs
            .tailscale
            .as_ref()
            .map(|fact| fact.value.path.clone()),
        device: with_device(spec, facts),
        accept_dns: spec.node.accept_dns,
        accept_routes: !SHARED_SPACE.contains(&spec.vpn.prefix),
        heartbeat: spec.node.heartbeat,
        silence: spec.node.silence,
        readers: facts
            .host
            .web_user
            .as_ref()
            .filter(|_| facts.host.root)
            .map(|(_, group)| group.clone()),
    })
}

/// Whether tailscaled gets a TUN device.
pub(crate) fn with_device(spec: &Spec, facts: &Facts) -> bool {
    match spec.node.tun {
        Tun::Device => true,
        Tun::Userspace => false,
        Tun::Auto => facts.host.tun,
    }
}

/// Who may call which backend, by the name that nginx asks for.
pub fn backends(spec: &Spec) -> BTreeMap<BackendName, AllowedApps> {
    let mut backends: BTreeMap<_, _> = spec
        .backends
        .iter()
        .map(|backend| (backend.name.clone(), backend.allowed_apps.clone()))
        .collect();
    if spec.role.server {
        // The VPC API answers some paths to every app and checks the others by itself.
        backends.insert(BackendName::api(), AllowedApps::Any);
    }
    backends
}

/// What nginx.conf says, for the front of our own. It gets its tag when it is complete.
fn front(spec: &Spec, facts: &Facts, state: &StateDir) -> FrontSettings {
    let mut routes = Routes::default();
    for backend in nginx::http_backends(spec) {
        let route = Route {
            backend: backend.name.clone(),
            leads: Leads::To(backend.upstream.clone()),
        };
        routes.add(backend.server_name.as_ref(), route);
    }
    if spec.role.server {
        let route = Route {
            backend: BackendName::api(),
            leads: Leads::ToApi,
        };
        routes.add(Some(&DnsName::api()), route);
    }
    FrontSettings {
        http_listen: spec.mesh.http_listen,
        https_listen: facts.identity.is_some().then_some(spec.mesh.https_listen),
        routes,
        files: state.vpc(),
        tag: String::new(),
    }
}

/// As HTTPS, they are not open before there is a certificate.
fn tcp_backends(spec: &Spec, facts: &Facts) -> BTreeMap<BackendName, TcpBackend> {
    let certified = spec.backends.iter().filter(|_| facts.identity.is_some());
    let tcp = certified.filter(|backend| backend.protocol == Protocol::Tcp);
    tcp.filter_map(|backend| {
        let (listen, upstream) = (backend.listen?, backend.upstream.clone());
        Some((backend.name.clone(), TcpBackend { listen, upstream }))
    })
    .collect()
}

fn forwards(spec: &Spec) -> BTreeMap<BackendName, Forward> {
    let forwards = spec.forwards.iter().map(|forward| {
        let settings = Forward {
            listen: forward.listen,
            app: forward.target_app,
            instance: forward.target_instance,
            port: forward.target_port,
        };
        (forward.name.clone(), settings)
    });
    forwards.collect()
}

fn mesh(spec: &Spec, facts: &Facts, state: &StateDir) -> MeshSettings {
    MeshSettings {
        client_listen: spec.mesh.client_listen,
        auth_listen: spec.mesh.auth_listen,
        front: (spec.mesh.front == Front::Builtin).then(|| front(spec, facts, state)),
        gateway: facts.gateway.as_ref().map(|fact| fact.value.clone()),
        agent: facts.agent.as_ref().map(|fact| fact.value.clone()),
        backends: backends(spec),
        tcp_backends: tcp_backends(spec, facts),
        forwards: forwards(spec),
        only_ipv6: wildcards::only_ipv6(spec),
        connect_timeout: spec.mesh.connect_timeout,
        response_timeout: spec.mesh.response_timeout,
        idle_timeout: spec.mesh.idle_timeout,
        drain_timeout: spec.mesh.drain_timeout,
        agent_timeout: spec.dstack.agent_timeout,
        limits: spec.limits.clone(),
        access_log: spec.mesh.access_log,
    }
}

fn api(spec: &Spec, facts: &Facts, state: &StateDir) -> ApiSettings {
    ApiSettings {
        listen: spec.server.api_listen,
        allowed_apps: spec.allowed_apps.clone(),
        own_app: facts.app_id.as_ref().map(|fact| fact.value),
        server_url: headscale::server_url(spec, facts),
        prefix: spec.vpn.prefix,
        join_key_lifetime: spec.server.join_key_lifetime,
        join_key_reusable: spec.server.join_key_reusable,
        requests_per_hour: spec.server.requests_per_hour,
        registrations_per_hour: spec.server.registrations_per_hour,
        registry: RegistrySettings {
            store: spec.registry.store,
            endpoints: spec.registry.endpoints.clone(),
            silence: spec.registry.silence,
            forget_after: spec.registry.forget_after,
        },
        headscale: facts.programs.headscale.as_ref().map(|program| Access {
            program: program.value.path.clone(),
            config: state.current().join(headscale::FILE),
            listen: spec.server.headscale_listen,
            key_file: state.secrets().join("headscale_api_key"),
            key_lifetime: spec.headscale.api_key_lifetime,
        }),
    }
}
