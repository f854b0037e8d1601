//! The predecessor's compose and its whole environment, with this program in its place: the same ports, headers and
//! interfaces.

use std::collections::BTreeSet;

use dstack_vpc::spec::ALIASES;
use hyper::Method;
use serde_json::{Value, json};

use crate::common::backend::Backend;
use crate::common::gateway::DOMAIN;
use crate::common::http::{Reply, With, get};
use crate::common::machine::has_nginx;
use crate::common::netns::Host;
use crate::common::{http, run};
use crate::compose::{Compose, DependsOn, Service};
use crate::container::{Member, example, file, host, must, prepare};
use crate::site::{Id, Site};
use crate::vpn::{api, until_joined};

/// For what nothing is needed any more.
const RETIRED: &str = "LOAD_MISSING_MODULES";

#[test]
fn between_before_and_after_lies_what_the_page_says() {
    let (before, after) = (
        Compose::read("migration/before.yaml"),
        Compose::read("migration/after.yaml"),
    );
    let (old, new) = (before.ours(), after.ours());
    assert_eq!(old.environment, new.environment);
    let names: BTreeSet<_> = new
        .environment(&[("VPC_ALLOWED_APPS", "any")])
        .into_keys()
        .collect();
    let known = ALIASES.iter().map(|alias| alias.name).chain([RETIRED]);
    assert_eq!(
        names,
        known.map(str::to_owned).collect(),
        "every old variable is in it"
    );

    assert!(
        old.privileged && old.volumes == ["/var/run/docker.sock:/var/run/docker.sock"],
        "{old:?}"
    );
    let changed = Service {
        image: old.image.clone(),
        privileged: true,
        volumes: old.volumes.clone(),
        ports: Vec::new(),
        cap_add: Vec::new(),
        devices: Vec::new(),
        extra_hosts: Vec::new(),
        ..new.clone()
    };
    assert_eq!(changed, *old);
    assert!(before.services.keys().eq(after.services.keys()));
    for (name, old) in before
        .services
        .iter()
        .filter(|(name, _)| *name != "dstack-service")
    {
        let new = &after.services[name];
        let changed = Service {
            network_mode: None,
            dns: old.dns.clone(),
            dns_search: old.dns_search.clone(),
            depends_on: match old.depends_on {
                DependsOn::Names(_) => DependsOn::default(),
                DependsOn::Conditions(_) => new.depends_on.clone(),
            },
            ..new.clone()
        };
        assert_eq!(changed, *old, "{name}");
    }
}

struct Stage {
    old: Member,
    /// Its app is in `VPC_ALLOWED_APPS`.
    caller: Member,
    stranger: Member,
    _orders: Backend,
    _site: Site,
}

impl Stage {
    async fn new() -> Self {
        let site = Site::new().await;
        let [own, caller, stranger] = ['e', '1', '7'].map(example);
        let compose = Compose::read("migration/after.yaml");
        let agent = format!("unix:{}", site.agent_socket("old").display());
        let url = format!("https://{}-8085.{DOMAIN}", own.instance);
        let gateway = format!("{DOMAIN}:443");
        let filled = [
            ("VPC_ALLOWED_APPS", caller.app.as_str()),
            ("VPC_SERVER_APP_ID", &own.app),
            ("VPC_SERVER_PORT", "8085"),
            ("VPC_SERVER_URL", &url),
            ("VPC_NODE_NAME", "hub-7"),
            ("VPC_NODE_TYPE", "gold"),
            ("DSTACK_GATEWAY_DOMAIN", &gateway),
            ("DSTACK_AGENT_ADDRESS", &agent),
        ];
        assert_eq!(compose.ours().published(&filled), [443, 8085]);
        let (of_old, mut old) = prepare(&site, "old", &own, &compose, &filled).await;
        // Where the agent and the gateway are, the variables alone say.
        must(&of_old, "umount /run/dstack.sock").await;
        must(&of_old, "rm /run/dstack.sock").await;
        old.env.retain(|(name, _)| name != "VPC__DSTACK__HOST_SHARED_DIR");
        let listener = of_old
            .inside
            .listen("127.0.0.1:3000".parse().expect("an address"));
        let orders = Backend::behind(listener.expect("port 3000"), "orders", None);
        let machine = old.spawn();
        let old = Member {
            id: own,
            host: of_old,
            machine,
        };
        let mesh = async |name, id: Id| {
            let host = host(&site, name, &id).await;
            let machine = file(&site, &host, "mesh.toml").spawn();
            Member { id, host, machine }
        };
        let (caller, stranger) = tokio::join!(mesh("caller", caller), mesh("stranger", stranger));
        tokio::join!(
            old.machine.until_ready(),
            until_joined(&old.machine),
            caller.machine.until_ready(),
            stranger.machine.until_ready()
        );
        Self {
            old,
            caller,
            stranger,
            _orders: orders,
            _site: site,
        }
    }

    /// As a local app of the machine.
    async fn local(&self, path: &str) -> Reply {
        self.old.machine.call(get(path)).await.expect("an answer")
    }
}

#[test]
fn the_old_environment_alone_gives_the_old_interfaces() {
    run(async {
        let stage = Stage::new().await;
        ports(&stage.old.host).await;
        local(&stage).await;
        calls(&stage).await;
        vpc_api(&stage).await;
    });
}

/// `VPC_SERVER_PORT`, and what never had a variable.
async fn ports(host: &Host) {
    let listening = must(host, "ss -ltnH").await;
    let locals = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'));
    let on = |wanted: &[&str]| -> BTreeSet<u16> {
        let found = locals.clone().filter(|(address, _)| wanted.contains(address));
        found.map(|(_, port)| port.parse().expect("a port")).collect()
    };
    assert_eq!(
        on(&["0.0.0.0", "*", "[::]"]),
        [80, 443, 8085].into(),
        "{listening}"
    );
    let inside = on(&["127.0.0.1"]);
    assert!(
        [8000, 8091].iter().all(|port| inside.contains(port)),
        "{listening}"
    );
    // Nobody but nginx asks there.
    assert_eq!(inside.contains(&8092), has_nginx(), "{listening}");

    let code = async |url: &str| must(host, &format!("curl -sk -o /dev/null -w %{{http_code}} {url}")).await;
    for (url, status) in [
        ("http://127.0.0.1/health", "200"),
        ("http://127.0.0.1:8091/health", "200"),
        ("http://127.0.0.1:8092/health", "200"),
        ("http://127.0.0.1:8092/auth", "401"),
        ("http://127.0.0.1:8000/health", "200"),
        ("http://127.0.0.1:8000/api/nodes", "401"),
        ("http://127.0.0.1:8085/health", "200"),
        ("https://127.0.0.1/health", "200"),
        ("https://127.0.0.1/", "401"),
        // By the names that containers in this network know.
        ("http://dstack-service/health", "200"),
        ("http://orders:3000/", "200"),
    ] {
        if url.contains(":8092/") && !has_nginx() {
            continue;
        }
        assert_eq!(code(url).await, status, "{url}");
    }
}

/// `DSTACK_AGENT_ADDRESS`, `DSTACK_GATEWAY_DOMAIN`, `VPC_NODE_NAME`, `VPC_SERVER_APP_ID`, `VPC_SERVER_URL`.
async fn local(stage: &Stage) {
    let own = &stage.old.id;
    let info = stage.local("/info").await.json();
    assert_eq!(
        (&info["app_id"], &info["instance_id"]),
        (&json!(own.app), &json!(own.instance))
    );
    let key = stage
        .local("/get_tls_key?subject=localhost&usage_server_auth=true&usage_client_auth=true")
        .await
        .json();
    assert_eq!(
        key["certificate_chain"].as_array().map(Vec::len),
        Some(3),
        "{key}"
    );
    let gateway = stage.local("/gateway").await.json();
    assert_eq!(gateway, json!({"gateway_domain": format!("{DOMAIN}:443")}));

    let status: Value = stage.local("/vpc/0/tailscale_status.json").await.json();
    let address = status["Self"]["TailscaleIPs"][0]
        .as_str()
        .expect("an address")
        .to_owned();
    // The network that the predecessor had.
    assert!(address.starts_with("100.128."), "{address}");
    for (name, wanted) in [
        ("tailscale_ip", &*address),
        ("actual_hostname", "hub-7.dstack.internal"),
        ("instance_id", &own.instance),
        ("vpc_server_app_id", &own.app),
        ("server_url", &format!("https://{}-8085.{DOMAIN}", own.instance)),
    ] {
        let reply = stage.local(&format!("/vpc/0/{name}")).await;
        assert_eq!((reply.status, reply.text().trim_end()), (200, wanted), "{name}");
    }
    assert_eq!(stage.local("/vpc/0/shared_key").await.text().trim_end().len(), 88);
    assert_eq!(stage.local("/vpc/0/pre_auth_key").await.status, 404);
}

/// `MESH_BACKEND`, and the headers of a call.
async fn calls(stage: &Stage) {
    let own = &stage.old.id;
    let call = async |request| stage.caller.machine.call(request).await.expect("an answer");
    let shout = own.app.to_uppercase();
    for (target, instance) in [(&own.app, None), (&shout, None), (&own.app, Some(&own.instance))] {
        let mut request = get("/orders").to_app(target).with("x-dstack-target-port", "443");
        if let Some(instance) = instance {
            request = request.with("x-dstack-target-instance", instance);
        }
        let reply = call(request).await;
        let seen = reply.json();
        assert_eq!(
            (&seen["backend"], &seen["path"]),
            (&json!("orders"), &json!("/orders")),
            "{}",
            reply.text()
        );
        let caller = json!(["x-dstack-app-id", stage.caller.id.app]);
        assert!(
            seen["headers"].as_array().expect("headers").contains(&caller),
            "{seen}"
        );
        assert!(!seen["headers"].to_string().contains("x-dstack-target"), "{seen}");
    }
    // The gateway ends TLS, so there is nobody's identity to check.
    let plain = get("/health")
        .to_app(&own.app)
        .with("x-dstack-target-port", "8085");
    let reply = call(plain.with("x-dstack-target-use-tls", "false")).await;
    assert_eq!(reply.json()["status"], "pass", "{}", reply.text());
    let reply = call(get("/").to_app("nobody")).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(
        reply.json()["error"].is_string() && reply.json()["code"].is_string(),
        "{}",
        reply.text()
    );
}

/// `VPC_SERVER_ENABLED`, `VPC_ALLOWED_APPS`, `VPC_NODE_TYPE`.
async fn vpc_api(stage: &Stage) {
    let own = &stage.old.id;
    let ask = async |method: Method, path: &str| api(&stage.caller.machine, own, method, path).await;
    assert_eq!(ask(Method::GET, "/api/ping").await.text(), "pong");
    assert_eq!(ask(Method::GET, "/health").await.text(), "OK");
    let refused = api(&stage.stranger.machine, own, Method::GET, "/api/nodes").await;
    assert_eq!(
        (refused.status, refused.json()),
        (403, json!({"error": "Forbidden"}))
    );

    let found = ask(Method::GET, "/api/discover/gold").await.json();
    assert_eq!(
        (&found["count"], &found["node_type"]),
        (&json!(1), &json!("gold")),
        "{found}"
    );
    assert_eq!(found["nodes"][0]["hostname"], "hub-7.dstack.internal", "{found}");
    assert_eq!(found["nodes"][0]["uuid"], *own.instance, "{found}");
    let none = ask(Method::GET, "/api/discover/silver").await;
    assert!(
        none.status == 404 && none.json()["error"].is_string(),
        "{}",
        none.text()
    );

    assert_eq!(ask(Method::GET, "/api/register").await.status, 400);
    let given = ask(Method::GET, "/api/register?instance_id=u-1&node_name=e-1")
        .await
        .json();
    for name in ["pre_auth_key", "shared_key", "server_url"] {
        assert!(given[name].is_string(), "{name}");
    }
    let update =
        "/api/nodes/update?uuid=u-2&node_type=etcd&tailscale_ip=100.128.9.9&hostname=e-2.dstack.internal";
    for word in ["created", "updated"] {
        assert_eq!(ask(Method::POST, update).await.json()["status"], word);
    }
    let found = ask(Method::GET, "/api/discover/etcd").await.json();
    assert_eq!(
        found["nodes"][0]["hostname_with_port"], "e-2.dstack.internal:2379",
        "{found}"
    );
    let nodes = ask(Method::GET, "/api/nodes").await.json();
    assert_eq!(nodes["count"], 3, "{nodes}");
    let fields = nodes["nodes"][0].as_object().expect("a node");
    for name in ["uuid", "name", "node_type", "tailscale_ip", "actual_hostname"] {
        assert!(fields.contains_key(name), "{nodes}");
    }
    // As programs on the server itself have always asked.
    let direct = stage
        .old
        .host
        .inside
        .connect("127.0.0.1:8000".parse().expect("an address"));
    let request = get("/api/nodes").with("x-dstack-app-id", &stage.caller.id.app);
    let direct = http::send_on(direct.await.expect("the API"), request)
        .await
        .expect("an answer");
    assert_eq!(direct.json()["count"], 3, "{}", direct.text());
}
