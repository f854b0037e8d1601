//! The VPN: orders is its server and a node, shop another node. No network device is made: packets travel in userspace.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dstack_vpc::node::Step;
use dstack_vpc::reconcile::status::Status;

use crate::common::http::{With, get, send};
use crate::common::machine::{Machine, Plan};
use crate::common::pair::Pair;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, SERVER_APP, poll};
use crate::story::{aside, good, quote, say};
use crate::text;

const JOINING: Duration = Duration::from_secs(60);
const DOMAIN: &str = "dstack.internal";

/// What of the VPN can be had on this computer.
pub(crate) struct Vpn {
    /// What is not installed.
    missing: Vec<&'static str>,
    headscale: Port,
    api: Port,
    proxy: Port,
}

impl Vpn {
    pub(crate) fn look() -> Self {
        let runs = |program, version| {
            let output = Command::new(program).arg(version).output();
            output.is_ok_and(|output| output.status.success())
        };
        let mut missing = Vec::new();
        if !runs("headscale", "version") {
            missing.push("Headscale");
        }
        if !runs("tailscaled", "--version") || !runs("tailscale", "version") {
            missing.push("Tailscale");
        }
        Self {
            missing,
            headscale: Port::reserve(),
            api: Port::reserve(),
            proxy: Port::reserve(),
        }
    }

    /// orders can be a server.
    pub(crate) fn has_server(&self) -> bool {
        !self.missing.contains(&"Headscale")
    }

    /// Both can be nodes.
    fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Makes of two mesh machines what the VPN has them be.
    pub(crate) fn make(&self, shop: &mut Plan, orders: &mut Plan) {
        if !self.has_server() {
            return;
        }
        let whole = self.is_whole();
        let role = if whole { "server+node" } else { "server" };
        let server = format!("role = \"{role}\"\nallowed_apps = [\"{CLIENT_APP}\"]");
        orders.toml = orders.toml.replace("role = \"mesh\"", &server);
        orders.toml += &format!(
            "\n[vpn]\nprefix = \"100.64.0.0/16\"\nderp = \"embedded\"\n\n[server]\nurl = \"http://{0}\"\n\
             headscale_listen = \"{0}\"\napi_listen = \"{1}\"\n",
            self.headscale, self.api
        );
        if whole {
            orders.toml +=
                "\n[node]\nname = \"orders-1\"\ntype = \"orders\"\ntun = \"userspace\"\naccept_dns = false\n";
            shop.toml = shop.toml.replace("role = \"mesh\"", "role = \"node\"");
            shop.toml += &format!(
                "\n[node]\nname = \"shop-1\"\ntype = \"shop\"\nserver_app_id = \"{SERVER_APP}\"\ntun = \"userspace\"\n\
                 accept_dns = false\n\n[tailscale]\nproxy_listen = \"{}\"\n",
                self.proxy
            );
        }
    }

    /// In a sentence, what the two machines are in the VPN.
    pub(crate) fn introduce(&self) {
        if self.is_whole() {
            say("orders is the VPC server, too: it runs Headscale, and both machines join its VPN.");
        } else if self.has_server() {
            say("orders is the VPC server, too: it runs Headscale, through which machines can join one VPN.");
        } else {
            say("Headscale is not installed (`make setup` installs it), so orders runs without it.");
        }
    }

    pub(crate) async fn tell(&self, pair: &Pair) -> Result<()> {
        if !self.is_whole() {
            let missing = self.missing.join(" and ");
            say(&format!("Left out: {missing} could not be had on this computer."));
            say(
                "`make setup` tries to install what is missing, and says why it cannot; then this chapter shows two nodes, a",
            );
            say("ping by name, and how they find each other.");
            return Ok(());
        }
        let shop = joined(&pair.client).await?;
        let orders = joined(&pair.server).await?;
        say(
            "Both have joined by themselves: each registered with the VPC API through the mesh, got a key for one use,",
        );
        say("handed it to its tailscaled, and announced itself. On orders, `dstack-vpc nodes` says:");
        let table = pair.server.cli(&["nodes"]);
        ensure!(
            table.status.success(),
            "{}",
            String::from_utf8_lossy(&table.stderr)
        );
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        table.lines().for_each(quote);
        for name in ["orders-1", "shop-1"] {
            ensure!(
                table.contains(&format!("{name}.{DOMAIN}")),
                "{name} is not announced"
            );
        }

        say("A ping by name, from shop:");
        quote("tailscale ping orders-1");
        quote(&ping(&pair.client, "orders-1").await?);

        say("An app of shop looks for nodes of the type \"orders\", and calls what it finds:");
        quote(&format!(
            "curl -H 'x-dstack-target-app: {SERVER_APP}' -H 'Host: vpc-server' \\"
        ));
        quote(&format!(
            "     http://{}/api/discover/orders",
            pair.client.ports.http
        ));
        let found = pair
            .call(get("/api/discover/orders").with("host", "vpc-server"))
            .await;
        ensure!(found.status == 200, "{} {}", found.status, found.text());
        quote(&found.text());
        let found = found.json();
        let host = text(&found["nodes"][0]["hostname"]);
        // Inside the other node the packet goes on to 127.0.0.1, where the backend listens.
        let url = format!("http://{host}:{}/hello", pair.default.addr().port());
        quote(&format!("curl --proxy http://{} {url}", self.proxy));
        let reply = send(self.proxy.addr(), get(&url).with("host", host)).await;
        let reply = reply.map_err(anyhow::Error::from_boxed)?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        quote(&format!(
            "{} from the program \"{}\"",
            reply.status,
            text(&reply.json()["backend"])
        ));
        aside(&format!("{} -> {}", address(&shop), address(&orders)));
        good(
            "Any TCP between the nodes, by name, encrypted from machine to machine, through a server that nobody set up by hand.",
        );
        Ok(())
    }
}

/// The line that says that `name` answers. Headscale has just been started again, so its nodes may have to find back.
async fn ping(from: &Machine, name: &str) -> Result<String> {
    let socket = format!("--socket={}", from.state.tailscale_socket().display());
    let pong = poll(JOINING, async || {
        let ping = Command::new("tailscale")
            .args([&socket, "ping", "--timeout=1s", "-c", "1", name])
            .output();
        let said = String::from_utf8_lossy(&ping.ok()?.stdout).into_owned();
        said.lines()
            .find(|line| line.starts_with("pong "))
            .map(str::to_owned)
    });
    pong.await
        .with_context(|| format!("{name} does not answer a ping"))
}

/// Waits until a machine is in the VPN and announced.
async fn joined(machine: &Machine) -> Result<Status> {
    let is_in = |status: &Status| status.node.as_ref().is_some_and(|node| node.step == Step::Joined);
    let status = machine.until(JOINING, "it has joined the VPN", is_in).await;
    Ok(status)
}

fn address(status: &Status) -> String {
    let node = status.node.as_ref();
    let address = node.and_then(|node| node.address);
    address.map_or("nowhere".to_owned(), |address| address.to_string())
}
