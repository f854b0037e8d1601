//! Servers, nodes, and what nodes make of each other.

use std::time::Duration;

use bytes::Bytes;
use dstack_vpc::node::{NodeStatus, Step};
use http_body_util::Empty;
use hyper::Method;
use serde_json::{Value, json};

use crate::common::backend::Backend;
use crate::common::http::{Reply, With, get, post};
use crate::common::machine::Machine;
use crate::common::netns::Host;
use crate::common::{http, run};
use crate::compose::Compose;
use crate::container::{Member, example, file, host, must, start, write_configs};
use crate::site::{Id, Site};

pub(crate) const SOON: Duration = Duration::from_secs(120);

pub(crate) async fn until_joined(machine: &Machine) -> NodeStatus {
    let joined = |status: &dstack_vpc::reconcile::status::Status| {
        status.node.as_ref().is_some_and(|node| node.step == Step::Joined)
    };
    let status = machine.until(SOON, "it has joined", joined).await;
    status.node.expect("it is a node")
}

/// A request to the VPC API, as a local app of `machine` would make it.
pub(crate) async fn api(machine: &Machine, server: &Id, method: Method, path: &str) -> Reply {
    let request = http::request(method, path, Empty::<Bytes>::new());
    let request = request.to_app(&server.app).with("host", "vpc-server");
    machine.call(request).await.expect("an answer")
}

/// Runs a service of a compose to its end, in the network of `member`, with the tools that its image has.
pub(crate) async fn run_service(member: &Host, compose: &Compose, name: &str) -> Result<String, String> {
    let service = &compose.services[name];
    assert_eq!(
        service.network_mode.as_deref(),
        Some("service:dstack-vpc"),
        "{name}"
    );
    assert!(service.image.contains("/busybox:"), "{name}");
    write_configs(member, compose, service).await;
    // Nothing else is on the path, so that a script cannot use what its image does not have.
    let tools = "[ -d /etc/busybox ] || { mkdir /etc/busybox && busybox --install -s /etc/busybox; }";
    let installed = member.inside.tell(&["sh", "-c", tools]).await;
    installed.expect("busybox; `make setup` installs it");
    let mut words = vec!["env", "-i", "PATH=/etc/busybox"];
    words.extend(service.command.iter().map(String::as_str));
    member.inside.tell(&words).await
}

#[test]
fn a_node_joins_and_its_app_finds_the_others() {
    run(async {
        let site = Site::new().await;
        let [server, node] = ['3', '1'].map(example);
        let of_server = host(&site, "server", &server).await;
        let serving = file(&site, &of_server, "server.toml").spawn();
        let compose = Compose::read("compose/node.yaml");
        let member = start(&site, "node", &node, &compose, &[("NODE_NAME", "mongodb-2")]).await;
        tokio::join!(serving.until_ready(), until_joined(&member.machine));

        let found = api(&member.machine, &server, Method::GET, "/api/discover/mongodb")
            .await
            .json();
        assert_eq!(
            found["nodes"][0]["hostname"], "mongodb-2.dstack.internal",
            "{found}"
        );
        let address = found["nodes"][0]["tailscale_ip"].as_str().expect("an address");
        assert!(address.starts_with("100.64."), "{address}");

        // Its backend, for peers that name it.
        let listener = member
            .host
            .inside
            .listen("127.0.0.1:27017".parse().expect("an address"));
        let _database = Backend::behind(listener.expect("port 27017"), "database", None);
        let call = get("/").to_app(&node.app).with("host", "mongodb");
        let reply = serving.call(call).await.expect("an answer");
        assert_eq!(reply.json()["backend"], "database", "{}", reply.text());

        replica_set(&member, &server).await;
    });
}

/// Two more nodes are announced, and the compose of the MongoDB example makes its files of all three.
async fn replica_set(member: &Member, server: &Id) {
    let compose = Compose::read("mongodb/compose.yaml");
    assert_eq!(
        compose
            .ours()
            .environment(&[("NODE_NAME", "a"), ("VPC_SERVER_APP_ID", "b")])["VPC_NODE_TYPE"],
        "mongodb"
    );
    must(&member.host, "mkdir -p /etc/mongo").await;
    let configured = run_service(&member.host, &compose, "configure");
    let announced = async {
        for (number, id) in [(1, "c1"), (3, "c3")] {
            let path = format!(
                "/api/nodes/update?uuid={id}&node_type=mongodb&tailscale_ip=100.64.9.{number}&hostname=mongodb-{number}.dstack.internal"
            );
            let reply = api(&member.machine, server, Method::POST, &path).await;
            assert_eq!(reply.json()["status"], "created", "{}", reply.text());
        }
    };
    let limit = tokio::time::timeout(SOON, async { tokio::join!(configured, announced).0 });
    limit.await.expect("it sees all three").expect("it ends well");

    let read = async |name: &str| must(&member.host, &format!("cat /etc/mongo/{name}")).await;
    let key = member
        .machine
        .call(get("/vpc/0/shared_key"))
        .await
        .expect("an answer")
        .text();
    assert_eq!(read("keyfile").await, key.trim_end());
    assert_eq!(
        must(&member.host, "stat -c %u:%g:%a /etc/mongo/keyfile").await,
        "999:999:400"
    );
    let script = read("replica-set.js").await;
    let hosts = script
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("const hosts = ")?.strip_suffix(';'));
    let hosts: Value = serde_json::from_str(hosts.expect("the hosts")).expect("a list");
    let names = [1, 2, 3].map(|number| format!("mongodb-{number}.dstack.internal:27017"));
    assert_eq!(hosts, json!(names), "{script}");
    assert!(
        script.contains("if (hosts[0] === \"mongodb-2.dstack.internal:27017\" && "),
        "{script}"
    );
    let conf: Value = serde_saphyr::from_str(&read("mongod.conf").await).expect("YAML");
    let address = member
        .machine
        .call(get("/vpc/0/tailscale_ip"))
        .await
        .expect("an answer")
        .text();
    assert_eq!(conf["net"]["bindIp"], format!("127.0.0.1,{}", address.trim_end()));
    assert_eq!(conf["replication"]["replSetName"], "rs0");
    assert_eq!(conf["security"]["keyFile"], "/etc/mongo/keyfile");

    // Made once: again it asks nobody and changes nothing.
    let before = must(&member.host, "ls -l --time-style=full-iso /etc/mongo").await;
    run_service(&member.host, &compose, "configure")
        .await
        .expect("it ends well");
    assert_eq!(
        must(&member.host, "ls -l --time-style=full-iso /etc/mongo").await,
        before
    );
}

#[test]
fn the_other_servers_do_what_they_are_for() {
    run(async {
        let site = Site::new().await;
        let [hub, private, sharing, node] = ['b', 'c', 'd', '1'].map(example);
        let of_hub = host(&site, "hub", &hub).await;
        let of_private = host(&site, "private", &private).await;
        let of_sharing = host(&site, "sharing", &sharing).await;
        let of_node = host(&site, "node", &node).await;
        let _etcd = etcd(&site, &of_sharing).await;
        let hub_machine = file(&site, &of_hub, "server-node.toml").spawn();
        let private_machine = file(&site, &of_private, "private-derp.toml").spawn();
        let sharing_machine = file(&site, &of_sharing, "etcd-registry.toml").spawn();
        let caller = file(&site, &of_node, "mesh.toml").spawn();
        tokio::join!(
            until_joined(&hub_machine),
            private_machine.until_ready(),
            sharing_machine.until_ready(),
            caller.until_ready()
        );

        // It is in its own VPN.
        let status = until_joined(&hub_machine).await;
        assert_eq!(status.dns_name.as_deref(), Some("hub.dstack.internal"));
        assert!(status.address.is_some_and(|it| it.octets()[..2] == [100, 64]));

        // Its own relay, and no other.
        let relay = of_private
            .inside
            .connect("127.0.0.1:8080".parse().expect("an address"));
        let probe = http::send_on(relay.await.expect("Headscale"), get("/derp/probe")).await;
        assert_eq!(probe.expect("an answer").status, 200);
        let rendered = private_machine.state.current().join("headscale/headscale.yaml");
        let rendered: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(rendered).expect("rendered")).expect("YAML");
        assert_eq!(rendered["server_url"], "https://vpn.example.com");
        assert_eq!(rendered["derp"]["urls"], json!([]));
        assert_eq!(rendered["derp"]["paths"], json!([]));
        assert_eq!(rendered["dns"]["base_domain"], "vpc.internal");

        // The registry is in etcd.
        let path =
            "/api/nodes/update?uuid=n-1&node_type=web&tailscale_ip=100.64.0.9&hostname=web-1.dstack.internal";
        let reply = api(&caller, &sharing, Method::POST, path).await;
        assert_eq!(reply.json()["status"], "created", "{}", reply.text());
        let range = json!({"key": "AA==", "range_end": "AA==", "keys_only": true}).to_string();
        let kept = of_sharing
            .inside
            .connect("10.0.0.2:2379".parse().expect("an address"));
        let kept = http::send_on(kept.await.expect("etcd"), post("/v3/kv/range", range))
            .await
            .expect("an answer");
        assert!(
            keys(&kept.json()).iter().any(|key| key.ends_with("n-1")),
            "{}",
            kept.text()
        );
    });
}

/// The names of what is in etcd.
fn keys(range: &Value) -> Vec<String> {
    use base64::Engine;
    let entries = range["kvs"].as_array().into_iter().flatten();
    entries
        .map(|entry| {
            let key =
                base64::engine::general_purpose::STANDARD.decode(entry["key"].as_str().unwrap_or_default());
            String::from_utf8_lossy(&key.expect("base64")).into_owned()
        })
        .collect()
}

/// At the three addresses that stand in the example: one process, since it is about the registry and not about etcd.
async fn etcd(site: &Site, host: &Host) -> Etcd {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let urls = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| format!("http://{address}:2379"));
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        site.switch
            .add_address(address.parse().expect("an address"))
            .await;
    }
    must(host, "ip route add 10.0.0.0/24 dev eth0").await;
    let mut command = site.switch.inside().command("etcd");
    command
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--log-level", "error"]);
    command.args([
        "--listen-client-urls",
        &urls.join(","),
        "--advertise-client-urls",
        &urls.join(","),
    ]);
    let child = command
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("etcd; `make setup` installs it");
    Etcd { child, _dir: dir }
}

struct Etcd {
    child: std::process::Child,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
