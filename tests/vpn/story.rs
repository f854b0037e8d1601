//! What a VPC is for: nodes join, reach each other by name, and find each other by type.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::http::get;
use crate::common::run;
use crate::vpc::{Member, Vpc, until};

#[test]
fn all_join_find_each_other_and_talk_by_name() {
    run(async {
        let vpc = Vpc::shared().await;
        let records = vpc.until_whole().await;
        let [db_1, db_2, web_1] = &vpc.nodes[..] else {
            panic!("three nodes");
        };
        let prefix: ipnet::Ipv4Net = "100.128.0.0/10".parse().expect("the default prefix");
        for node in &vpc.nodes {
            let record = &records[&node.id.instance];
            assert_eq!(record.hostname, format!("{}.dstack.internal", node.name));
            let address = record.address.parse().expect("an address");
            assert!(prefix.contains::<&std::net::Ipv4Addr>(&address), "{record:?}");
        }
        let found = web_1.discover(&vpc, "mongodb").await.expect("two nodes");
        let hostnames: Vec<_> = found["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|node| node["hostname"].as_str().expect("a hostname"))
            .collect();
        assert_eq!(hostnames, ["db-1.dstack.internal", "db-2.dstack.internal"]);
        let none = web_1
            .discover(&vpc, "redis")
            .await
            .expect_err("there is no such node");
        assert!(none.contains("404"), "{none}");

        let service = db_2
            .host
            .inside
            .listen("0.0.0.0:27017".parse().expect("an address"));
        let service = tokio::spawn(echo(service.expect("port 27017")));
        for client in [db_1, web_1] {
            let mut stream = connect(client, "db-2", 27017).await;
            // More than one packet, more than one window.
            for length in [1, 1_400, 4_000_000] {
                let message: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                let (mut read, mut write) = stream.split();
                let sending = async {
                    write.write_u32(length).await?;
                    write.write_all(&message).await
                };
                let receiving = async {
                    let mut answer = vec![0; read.read_u32().await? as usize];
                    read.read_exact(&mut answer).await?;
                    std::io::Result::Ok(answer)
                };
                let exchange = async { tokio::try_join!(sending, receiving) };
                let limit = Duration::from_secs(60);
                let answer = tokio::time::timeout(limit, exchange).await.expect("in time");
                assert!(
                    answer.expect("an answer").1 == message,
                    "{length} bytes came back other than they went"
                );
            }
        }
        service.abort();
    });
}

#[test]
fn local_apps_read_where_they_are_in_the_vpn() {
    run(async {
        let vpc = Vpc::shared().await;
        let records = vpc.until_whole().await;
        let node = &vpc.nodes[0];
        let read = async |name: &str| {
            let reply = node
                .machine
                .call(get(&format!("/vpc/0/{name}")))
                .await
                .expect("an answer");
            (reply.status, reply.text().trim_end().to_owned())
        };
        let record = &records[&node.id.instance];
        let server_url = format!("https://{}-8080.apps.vpc.test", vpc.server.id.app);
        for (name, wanted) in [
            ("tailscale_ip", &record.address),
            ("actual_hostname", &record.hostname),
            ("instance_id", &node.id.instance),
            ("vpc_server_app_id", &vpc.server.id.app),
            ("server_url", &server_url),
        ] {
            assert_eq!(read(name).await, (200, wanted.clone()), "{name}");
        }
        let (status, key) = read("shared_key").await;
        assert_eq!((status, key.len()), (200, 88), "64 bytes in base64");
        assert_eq!(
            vpc.nodes[2].file("shared_key").as_ref(),
            Ok(&key),
            "all nodes share it"
        );
        let (status, tailscale) = read("tailscale_status.json").await;
        let tailscale: serde_json::Value = serde_json::from_str(&tailscale).expect("JSON");
        assert_eq!((status, &tailscale["BackendState"]), (200, &"Running".into()));
        assert_eq!(tailscale["Self"]["TailscaleIPs"][0], record.address.as_str());
        assert_eq!(read("pre_auth_key").await.0, 404, "it is nobody's business");
        let (_, listed) = read("").await;
        assert!(!listed.contains("shared_key"), "{listed}");
    });
}

#[test]
fn nodes_and_status_show_the_vpn() {
    run(async {
        let vpc = Vpc::shared().await;
        let records = vpc.until_whole().await;
        let table = vpc.server.machine.cli(&["nodes"]);
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        for record in records.values() {
            let line = table.lines().find(|line| line.contains(&record.name));
            let line = line.unwrap_or_else(|| panic!("{} is not in\n{table}", record.name));
            assert!(
                line.contains(&record.address) && line.contains(&record.node_type),
                "{line}"
            );
        }
        let node = &vpc.nodes[0];
        let status = node.machine.cli(&["status"]);
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains(&records[&node.id.instance].address), "{status}");
        assert!(status.contains("db-2") && status.contains("web-1"), "{status}");
    });
}

/// As MongoDB's messages are: a length, then so many bytes. Sends each one back.
async fn echo(listener: TcpListener) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            while let Ok(length) = stream.read_u32().await {
                let mut message = vec![0; length as usize];
                stream.read_exact(&mut message).await?;
                stream.write_u32(length).await?;
                stream.write_all(&message).await?;
            }
            std::io::Result::Ok(())
        });
    }
}

/// From a node to a name in the VPN, as the node itself resolves it.
async fn connect(from: &Member, name: &str, port: u16) -> TcpStream {
    let connected = until(Duration::from_secs(30), "a connection over the VPN", async || {
        let found = from.host.inside.tell(&["getent", "ahostsv4", name]).await?;
        let address = found.split_whitespace().next().unwrap_or_default();
        let address = address.parse().map_err(|_| format!("{name} is {found:?}"))?;
        let connecting = from.host.inside.connect(SocketAddr::new(address, port));
        connecting.await.map_err(|e| format!("{address}: {e}"))
    });
    connected.await.expect("the service is up")
}
