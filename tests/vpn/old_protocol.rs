//! What clients did before there was a node role: curl, and `tailscale up` by hand.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::netns::Host;
use crate::common::run;
use crate::hand::Tailscaled;
use crate::site::{Id, Site};
use crate::vpc::{server_toml, until};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn register_join_by_hand_announce_and_discover() {
    run(async {
        let site = Site::new().await;
        let (server_id, a, b) = (Id::new("5e44e4", 1), Id::new("a1", 1), Id::new("b1", 1));
        let server = site.host("server", &server_id).await;
        let (one, two) = (site.host("one", &a).await, site.host("two", &b).await);
        // As CVMs are: whoever they talk to, it is through the gateway.
        for host in [&server, &one, &two] {
            host.isolate().await;
        }
        let server = site.machine(&server, &server_toml(&[&a, &b])).spawn();
        let [mesh_one, mesh_two] = [&one, &two].map(|host| site.machine(host, "role = \"mesh\"").spawn());
        tokio::join!(
            server.until_ready(),
            mesh_one.until_ready(),
            mesh_two.until_ready()
        );

        let ca = site.ca();
        let (first, second) = (Tailscaled::start(&one, &ca), Tailscaled::start(&two, &ca));
        let hostname = join(&one, &first, &server_id, &a, "old-1").await;
        assert_eq!(hostname, "old-1.dstack.internal");
        join(&two, &second, &server_id, &b, "old-2").await;

        let found = curl(&two, &server_id, &["/api/discover/mongodb"])
            .await
            .expect("the nodes");
        let listed: Vec<_> = found["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|node| &node["uuid"])
            .collect();
        assert_eq!(listed, [&json!(a.instance), &json!(b.instance)], "{found}");
        assert_eq!(found["count"], 2);
        assert_eq!(found["node_type"], "mongodb");
        assert_eq!(found["nodes"][0]["hostname"], "old-1.dstack.internal");

        let ping = async || two.inside.tell(&["ping", "-c", "1", "-W", "3", "old-1"]).await;
        until(PATIENCE, "a ping by name", ping).await.expect("an answer");
        let status = second.status().await.expect("a status");
        let peers = status["Peer"].as_object().expect("peers");
        let relays: Vec<_> = peers
            .values()
            .map(|peer| (&peer["CurAddr"], &peer["Relay"]))
            .collect();
        assert_eq!(
            relays,
            [(&json!(""), &json!("vpc"))],
            "they have no other way than the server's relay"
        );

        let theft = format!("/api/nodes/update?uuid={}&node_type=mine", a.instance);
        let refused = curl(&two, &server_id, &["-X", "POST", &theft]).await;
        let why = refused.expect_err("the node belongs to another app");
        assert!(why.contains("403"), "{why}");
    });
}

/// Registers, joins and announces; the name it got.
async fn join(host: &Host, tailscaled: &Tailscaled<'_>, server: &Id, id: &Id, name: &str) -> String {
    let register = format!("/api/register?instance_id={}&node_name={name}", id.instance);
    // The server may still be making itself at home.
    let registered = until(PATIENCE, "registered", async || {
        curl(host, server, &[&register]).await
    });
    let registered = registered.await.expect("a registration");
    let word = |name: &str| registered[name].as_str().expect(name).to_owned();
    assert_eq!(
        word("server_url"),
        format!("https://{}-8080.apps.vpc.test", server.app)
    );
    assert_eq!(word("shared_key").len(), 88, "64 bytes in base64");
    let up = [
        "up",
        &format!("--login-server={}", word("server_url")),
        &format!("--authkey={}", word("pre_auth_key")),
        &format!("--hostname={name}"),
        "--accept-routes",
        "--timeout=60s",
    ];
    let starts = async || tailscaled.status().await;
    until(PATIENCE, "tailscaled has started", starts)
        .await
        .expect("a status");
    tailscaled.cli(&up).await.expect("tailscale up");
    let own = tailscaled.status().await.expect("a status")["Self"].clone();
    let address = own["TailscaleIPs"][0].as_str().expect("an address");
    let hostname = own["DNSName"].as_str().expect("a name").trim_end_matches('.');
    let update = format!(
        "/api/nodes/update?uuid={}&node_type=mongodb&tailscale_ip={address}&hostname={hostname}",
        id.instance
    );
    let updated = curl(host, server, &["-X", "POST", &update])
        .await
        .expect("an update");
    assert_eq!(updated, json!({"status": "updated"}));
    hostname.to_owned()
}

/// The real curl, to port 80 of its own machine; the path comes last.
async fn curl(host: &Host, server: &Id, words: &[&str]) -> Result<Value, String> {
    let (path, options) = words.split_last().expect("a path");
    let target = format!("x-dstack-target-app: {}", server.app);
    let url = format!("http://127.0.0.1{path}");
    let fixed = [
        "curl",
        "-sS",
        "--fail-with-body",
        "--max-time",
        "30",
        "-H",
        "Host: vpc-server",
        "-H",
        &target,
    ];
    let said = host.inside.tell(&[&fixed[..], options, &[&url]].concat()).await?;
    serde_json::from_str(&said).map_err(|e| format!("{e}: {said}"))
}
