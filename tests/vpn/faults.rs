//! What breaks, and that it heals by itself: nothing registered is lost, nothing is registered twice.

use std::time::Duration;

use crate::common::run;
use crate::vpc::{Records, Vpc, until};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_server_is_killed_and_comes_back() {
    run(async {
        let mut vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        // The server is also the relay, and a path that was just found may still lead over it, in one direction.
        vpc.until_direct("db-1", "web-1").await;
        vpc.until_direct("web-1", "db-1").await;
        vpc.server.machine.crash();
        // Who is connected stays so; a packet may be lost while tailscaled notices that the relay is gone.
        let goes_on = until(PATIENCE, "the VPN goes on without its server", || {
            vpc.nodes[0].ping("web-1")
        });
        goes_on.await.expect("db-1 and web-1 need no server");
        vpc.nodes[0]
            .ask(&vpc.server.id, "/api/nodes")
            .await
            .expect_err("the server is gone");
        vpc.server.machine.spawn_again();
        assert_eq!(vpc.until_whole().await, before);
    });
}

#[test]
fn a_node_is_killed_and_comes_back_under_its_address() {
    run(async {
        let mut vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        vpc.nodes[1].machine.crash();
        vpc.nodes[0].ping("db-2").await.expect_err("the node is gone");
        vpc.nodes[1].machine.spawn_again();
        assert_eq!(vpc.until_whole().await, before);
    });
}

#[test]
fn a_killed_tailscaled_comes_back() {
    run(async {
        let vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let processes = vpc.nodes[0].machine.processes();
        let tailscaled = processes
            .iter()
            .find(|process| process.command.contains("tailscaled "));
        let tailscaled = tailscaled.expect("tailscaled runs").pid;
        let pid = nix::unistd::Pid::from_raw(tailscaled);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
        assert_eq!(vpc.until_whole().await, before);
    });
}

#[test]
fn a_partition_heals() {
    run(async {
        let vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let cut_off = &vpc.nodes[2];
        cut_off.host.unplug().await;
        vpc.nodes[0].ping("web-1").await.expect_err("the cable is out");
        let missed = until(PATIENCE, "it is not discovered any more", async || {
            match vpc.nodes[0].discover(&vpc, "web").await {
                Err(why) if why.contains(": 404 ") => Ok(()),
                Err(why) => Err(why),
                Ok(found) => Err(found.to_string()),
            }
        });
        missed.await.expect("its silence is noticed");
        vpc.nodes[0]
            .ping("db-2")
            .await
            .expect("the others are not disturbed");
        cut_off.host.plug().await;
        assert_eq!(vpc.until_whole().await, before);
    });
}

#[test]
fn a_node_whose_key_expired_registers_again() {
    run(async {
        let vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let id = with_headscale(&vpc).await.expect("the node")["id"].to_string();
        let expire = ["nodes", "expire", "--identifier", &id];
        vpc.headscale(&expire).await.expect("it expires");
        let renewed = until(PATIENCE, "the node has registered again", async || {
            let node = with_headscale(&vpc).await?;
            node["expiry"].is_null().then_some(()).ok_or(node.to_string())
        });
        renewed.await.expect("it does so by itself");
        assert_eq!(vpc.until_whole().await, before);
    });
}

#[test]
fn a_node_that_headscale_lost_joins_again() {
    run(async {
        let vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let id = with_headscale(&vpc).await.expect("the node")["id"].to_string();
        let delete = ["nodes", "delete", "--force", "--identifier", &id];
        vpc.headscale(&delete).await.expect("it is deleted");
        assert_eq!(who(&vpc.until_whole().await), who(&before));
    });
}

#[test]
fn a_node_that_lost_everything_is_the_same_node() {
    run(async {
        let mut vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let node = &mut vpc.nodes[1];
        node.machine.crash();
        std::fs::remove_dir_all(node.machine.state.root()).expect("a state directory");
        node.machine.spawn_again();
        let after = vpc.until_whole().await;
        // It had no key any more that proves who it was to Headscale, so its address may be another.
        assert_eq!(who(&after), who(&before));
    });
}

#[test]
fn a_key_that_is_refused_is_replaced() {
    run(async {
        let mut vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        let node = &mut vpc.nodes[0];
        node.machine.crash();
        // tailscaled is a stranger now, and what the node takes for a fresh key is none.
        let secrets = node.machine.state.secrets();
        std::fs::remove_dir_all(node.machine.state.tailscale()).expect("a state directory");
        std::fs::write(secrets.join("join_key"), format!("hskey-auth-{:a<77}", "")).expect("a key file");
        node.machine.spawn_again();
        assert_eq!(who(&vpc.until_whole().await), who(&before));
    });
}

#[test]
fn a_damaged_registry_is_refused_and_never_taken_for_an_empty_one() {
    run(async {
        let mut vpc = Vpc::shared().await;
        let before = vpc.until_whole().await;
        vpc.server.machine.crash();
        let dir = vpc.server.machine.state.root().join("registry");
        let file = std::fs::read_dir(&dir)
            .expect("a folder")
            .filter_map(|entry| Some(entry.ok()?.path()));
        let file = file
            .max_by_key(|path| path.metadata().map_or(0, |it| it.len()))
            .expect("a file");
        let whole = std::fs::read(&file).expect("the registry");
        std::fs::write(&file, &whole[..whole.len() / 2]).expect("half of it");

        vpc.server.machine.spawn_again();
        let refused = until(PATIENCE, "the API refuses", async || {
            match vpc.nodes[0].ask(&vpc.server.id, "/api/nodes").await {
                Err(why) if why.contains(": 503 ") => Ok(why),
                Err(why) => Err(why),
                Ok(nodes) => panic!("half a registry is served: {nodes}"),
            }
        });
        let why = refused.await.expect("an answer");
        assert!(why.contains("registry"), "{why}");
        let status = vpc.server.machine.cli(&["status"]);
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(
            status.contains(&file.display().to_string()),
            "what to look at is not in\n{status}"
        );
        assert_eq!(
            std::fs::read(&file).expect("half of it").len(),
            whole.len() / 2,
            "it is left alone"
        );

        vpc.server.machine.crash();
        std::fs::write(&file, &whole).expect("all of it");
        vpc.server.machine.spawn_again();
        assert_eq!(vpc.until_whole().await, before);
    });
}

/// Which nodes there are, wherever they are.
fn who(records: &Records) -> Vec<(String, String, String, String)> {
    let all = records.iter();
    all.map(|(id, it)| {
        (
            id.clone(),
            it.name.clone(),
            it.node_type.clone(),
            it.hostname.clone(),
        )
    })
    .collect()
}

/// What Headscale says of `db-1`.
async fn with_headscale(vpc: &Vpc) -> Result<serde_json::Value, String> {
    let nodes = vpc.headscale(&["nodes", "list"]).await?;
    let mut nodes = nodes.as_array().into_iter().flatten();
    let found = nodes.find(|node| node["name"] == "db-1");
    found.cloned().ok_or("Headscale does not know db-1".to_owned())
}
