//! `doctor` on a server and its nodes that are well, as the internet sees them.

use std::time::Duration;

use serde_json::Value;

use crate::common::run;
use crate::vpc::{Member, Vpc, until};

/// Errors and warnings, as `check: what`.
fn wrong(vpc: &Vpc, member: &Member) -> Vec<String> {
    let output = member
        .host
        .inside
        .command(crate::common::binary())
        .args(["--config".as_ref(), member.machine.config.as_os_str()])
        .args(["--state-dir".as_ref(), member.machine.state.root().as_os_str()])
        .args(["doctor", "--json"])
        // As on the machine itself: else the gateway's certificate is nobody's.
        .env("SSL_CERT_FILE", vpc.ca())
        .output()
        .expect("the dstack-vpc binary");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings").iter();
    let wrong = findings.filter(|it| it["severity"] == "error" || it["severity"] == "warning");
    // The KMS of these tests does not know their gateway.
    let wrong = wrong.filter(|it| it["check"] != "gateway-certificate");
    wrong
        .map(|it| {
            format!(
                "{}: {}",
                it["check"].as_str().unwrap(),
                it["what"].as_str().unwrap()
            )
        })
        .collect()
}

/// Now or soon: on a busy machine somebody may answer late.
async fn finds(vpc: &Vpc, member: &Member, expected: &[&str]) {
    let found = until(Duration::from_secs(60), "nothing else is wrong", async || {
        let found = wrong(vpc, member);
        (found == expected).then_some(()).ok_or(format!("{found:?}"))
    });
    found.await.unwrap_or_else(|why| panic!("{}: {why}", member.name));
}

#[test]
fn machines_that_are_well_are_found_well_but_for_a_listener_that_the_internet_reaches() {
    run(async {
        let vpc = Vpc::shared().await;
        for member in [&vpc.server].into_iter().chain(&vpc.nodes) {
            let exposed = format!(
                "exposed: the internet reaches mesh.http_listen: https://{}-80.{}/health answers",
                member.id.app,
                crate::common::gateway::DOMAIN
            );
            finds(&vpc, member, &[&exposed]).await;
        }
        let web = &vpc.nodes[2];
        let listen = "[mesh]\nhttp_listen = \"127.0.0.1:8081\"\n";
        web.machine.edit(|toml| toml.replace("[mesh]\n", listen)).await;
        finds(&vpc, web, &[]).await;
        // A container's name, which its own network may well know.
        let orders = "[[backends]]\nname = \"orders\"\nprotocol = \"tcp\"\nlisten = \"0.0.0.0:7009\"\nupstream = \"orders:8080\"\n";
        web.machine.edit(|toml| format!("{toml}\n{orders}")).await;
        let lost =
            "names: orders, an upstream of the backend \"orders\", is a name that the VPN does not know";
        finds(&vpc, web, &[lost]).await;
        web.machine.edit(|toml| toml.replace(orders, "")).await;
        web.machine.edit(|toml| toml.replace(listen, "[mesh]\n")).await;
    });
}
