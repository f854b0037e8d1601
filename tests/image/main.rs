//! The image as its users run it: real containers, each on a host of its own (network namespaces), with the users and
//! capabilities that docs/image.md names. `make image-test` runs it, on the image that `make image` made: without that
//! feature there is nothing here.
#![cfg(feature = "image-test")]

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "../vpn/site.rs"]
#[allow(dead_code)]
mod site;

mod container;

use std::time::Duration;

use serde_json::Value;

use common::backend::Backend;
use common::http::{With, get};
use common::netns::Switch;
use common::run;
use container::{Container, Setup};
use site::{Id, Site};

/// How long all machines together may take to be whole.
const WHOLE: Duration = Duration::from_secs(180);

#[test]
fn every_role_works_in_a_container_of_the_image() {
    run(async {
        let vpc = Vpc::start().await;
        vpc.serves_and_reaches().await;
        vpc.needs_no_options();
        vpc.has_no_more_rights_than_it_was_given();
        vpc.ends_when_it_is_told_to();
    });
}

/// A server, a machine of the mesh only, and a node with and one without a device.
struct Vpc {
    server: Container,
    mesh: Container,
    device: Container,
    userspace: Container,
    server_id: Id,
    mesh_id: Id,
    _backend: Backend,
    _site: Site,
}

impl Vpc {
    /// The server has a mounted `vpc.toml`, the others have the environment only.
    async fn start() -> Self {
        container::require_image();
        let site = Site::new().await;
        let (server_id, mesh_id) = (Id::new("5e44e4", 1), Id::new("a1", 1));
        let [device_id, userspace_id] = [1, 2].map(|number| Id::new("db", number));
        let node = |name, kind| {
            Setup::new()
                .env("VPC_NODE_NAME", name)
                .env("VPC_NODE_TYPE", kind)
                .env("VPC_SERVER_APP_ID", &server_id.app)
        };
        // Of Tailscale's own range: nobody reaches a node without a device at an address outside.
        let toml = format!(
            "version = 1\nrole = \"server\"\nallowed_apps = [\"{}\"]\n[vpn]\nprefix = \"100.100.0.0/16\"\nderp = \"embedded\"\nnameservers = [\"{}\"]\n",
            device_id.app,
            Switch::ADDRESS
        );
        let server = Setup::new().user("vpc").toml(&toml);
        let mesh = Setup::new().user("vpc").env("MESH_BACKEND", "127.0.0.1:7000");
        let device = node("db-1", "mongodb").with_device();
        let userspace = node("db-2", "redis").user("vpc");
        let (server, mesh, device, userspace) = tokio::join!(
            server.start(&site, "server", &server_id),
            mesh.start(&site, "mesh", &mesh_id),
            device.start(&site, "device", &device_id),
            userspace.start(&site, "userspace", &userspace_id),
        );
        let listener = mesh
            .host
            .inside
            .listen("127.0.0.1:7000".parse().expect("an address"));
        let vpc = Self {
            _backend: Backend::behind(listener.expect("port 7000"), "behind the mesh", None),
            server,
            mesh,
            device,
            userspace,
            server_id,
            mesh_id,
            _site: site,
        };
        for container in vpc.containers() {
            container
                .until("it is healthy", WHOLE, || container.healthcheck())
                .await;
        }
        vpc
    }

    fn containers(&self) -> [&Container; 4] {
        [&self.server, &self.mesh, &self.device, &self.userspace]
    }

    async fn serves_and_reaches(&self) {
        // The mesh: from a node to the machine that is nothing else.
        let reply = self.device.call(get("/orders").to_app(&self.mesh_id.app)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["backend"], "behind the mesh", "{}", reply.text());
        let ask = |path: &str| get(path).to_app(&self.server_id.app).with("host", "vpc-server");
        assert_eq!(
            self.mesh.call(ask("/api/nodes")).await.status,
            403,
            "it is not in allowed_apps"
        );

        // The VPC API, and what the two nodes are to each other.
        let nodes = self.userspace.call(ask("/api/nodes")).await.json();
        let nodes = nodes["nodes"].as_array().expect("a list").clone();
        let address_of = |name: &str| {
            let node = nodes.iter().find(|node| node["name"] == name);
            let address = node.and_then(|node| node["tailscale_ip"].as_str());
            address
                .unwrap_or_else(|| panic!("{name} is not in {nodes:#?}"))
                .to_owned()
        };
        let (device, userspace) = (address_of("db-1"), address_of("db-2"));
        let found = self.device.call(ask("/api/discover/redis")).await.json();
        assert_eq!(found["nodes"][0]["hostname"], "db-2.dstack.internal", "{found}");
        // Through the VPN, in which one has no device, so that it gets at 127.0.0.1 what comes for it.
        let reached = async || {
            let sent = self.device.send(&userspace, get("/vpc/0/actual_hostname"));
            match sent.await.map(|reply| reply.text()) {
                Ok(name) if name.trim_end() == "db-2.dstack.internal" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        };
        self.device.until("db-2 answers db-1", WHOLE, reached).await;
        let name = self.device.exec(&["getent", "hosts", "db-2.dstack.internal"]);
        assert!(
            name.as_ref().is_ok_and(|line| line.starts_with(&userspace)),
            "{name:?}"
        );
        let ping = ["tailscale", "ping", "-c", "1", "--until-direct=false", &device];
        self.userspace.exec(&ping).expect("db-1 answers db-2");
    }

    /// What operators type in a container.
    fn needs_no_options(&self) {
        for (container, programs) in [
            (&self.server, &["dstack-vpc", "headscale", "nginx"][..]),
            (&self.mesh, &["dstack-vpc", "nginx"]),
            (&self.device, &["dstack-vpc", "nginx", "tailscaled"]),
        ] {
            let said = container.exec(&["supervisorctl", "status"]).expect("all run");
            let mut words: Vec<_> = said.lines().map(|line| line.split_whitespace().take(2)).collect();
            let mut found: Vec<_> = words
                .iter_mut()
                .map(|words| (words.next(), words.next()))
                .collect();
            found.sort();
            let wanted: Vec<_> = programs
                .iter()
                .map(|name| (Some(*name), Some("RUNNING")))
                .collect();
            assert_eq!(found, wanted, "{said}");
        }
        let nodes = self
            .server
            .exec(&["headscale", "nodes", "list"])
            .expect("a table");
        let status = self.device.exec(&["tailscale", "status"]).expect("a list");
        let table = self.server.exec(&["dstack-vpc", "nodes"]).expect("a table");
        for said in [nodes, status, table] {
            assert!(said.contains("db-1") && said.contains("db-2"), "{said}");
        }
        let json = self
            .userspace
            .exec(&["dstack-vpc", "status", "--json"])
            .expect("all is well");
        let status: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(status["node"]["step"], "joined", "{json}");
    }

    fn has_no_more_rights_than_it_was_given(&self) {
        for container in [&self.server, &self.mesh, &self.userspace] {
            let users = container.top("user");
            assert!(
                users.iter().all(|user| user == "vpc"),
                "{}: {users:?}",
                container.name
            );
            let capabilities = container.top("capeff");
            assert!(capabilities.iter().all(|all| all == "none"), "{capabilities:?}");
        }
    }

    /// As `docker stop` does.
    fn ends_when_it_is_told_to(&self) {
        for container in self.containers() {
            assert_eq!(container.stop(), 0, "{}\n{}", container.name, container.logs());
        }
    }
}
