//! Networks that overlap, ports of every kind, and what is open to others.

use std::net::TcpListener;

use super::Patient;

#[tokio::test(flavor = "multi_thread")]
async fn a_local_network_with_addresses_of_the_vpn() {
    let network = |net: &str| {
        format!(
            "ip link set lo up; ip link add lan type bridge; ip address add {net} dev lan; ip link set lan up"
        )
    };
    let node = Patient::new().with(
        "role = \"node\"",
        "[node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"device\"",
    );
    let report = node.examine_in(&["--net"], &network("100.100.7.1/24")).await;
    report.says(
        "vpn-prefix",
        "warning",
        "the network 100.100.7.0/24 of lan overlap",
    );
    let report = node.examine_in(&["--net"], &network("10.1.2.1/24")).await;
    assert_eq!(report.of("vpn-prefix"), []);

    let server = Patient::new().with(
        "role = \"server\"\nallowed_apps = []",
        "[vpn]\nprefix = \"100.64.0.0/16\"",
    );
    let report = server.examine_in(&["--net"], &network("100.64.9.1/24")).await;
    let mend = report.says(
        "vpn-prefix",
        "warning",
        "vpn.prefix 100.64.0.0/16 and the network 100.64.9.0/24",
    );
    assert!(mend.contains("prefix = \"100.65.0.0/16\""), "{mend}");
    // A route is enough.
    let routed = format!(
        "{}; ip route add 100.64.128.0/17 via 10.1.2.3",
        network("10.1.2.1/24")
    );
    let report = server.examine_in(&["--net"], &routed).await;
    report.says(
        "vpn-prefix",
        "warning",
        "the network 100.64.128.0/17 of lan overlap",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_ports_of_tcp_backends_forwards_and_the_built_in_front() {
    let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [https, backend, forward, proxy] = held.each_ref().map(|held| held.local_addr().unwrap());
    let patient = Patient::new().with(
        "role = \"node\"",
        &format!(
            "[mesh]\nfront = \"builtin\"\nhttps_listen = \"{https}\"\n\
             [[backends]]\nprotocol = \"tcp\"\nlisten = \"{backend}\"\nupstream = \"127.0.0.1:1\"\n\
             [[forwards]]\nlisten = \"{forward}\"\ntarget_app = \"{}\"\n\
             [node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"userspace\"\n\
             [tailscale]\nproxy_listen = \"{proxy}\"\n[nginx]\nprogram = \"/none/nginx\"",
            "5e".repeat(20)
        ),
    );
    let report = patient.examine().await;
    for key in [
        format!("mesh.https_listen {https}"),
        format!("backends[0].listen {backend}"),
        format!("forwards[0].listen {forward}"),
        format!("tailscale.proxy_listen {proxy}"),
    ] {
        report.says("port", "error", &format!("{key} is taken by"));
    }
    // That front needs neither the program nor its port.
    assert_eq!(report.of("nginx"), []);
    let auth = |(_, what, _): &(String, String, String)| what.contains("auth_listen");
    assert!(!report.of("port").iter().any(auth));
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_that_believe_whoever_comes_and_a_server_that_lets_everybody_in() {
    let port = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let patient = Patient::new().with(
        "role = \"server+node\"\nallowed_apps = \"any\"",
        &format!(
            "[mesh]\nhttp_listen = \"0.0.0.0:{}\"\nclient_listen = \"0.0.0.0:{}\"\nauth_listen = \"0.0.0.0:{}\"\n\
             [server]\napi_listen = \"0.0.0.0:{}\"\n[metrics]\nlisten = \"0.0.0.0:{}\"\n\
             [node]\nname = \"db-1\"\ntun = \"userspace\"\n[tailscale]\nproxy_listen = \"0.0.0.0:{}\"\n\
             [[forwards]]\nlisten = \"0.0.0.0:{}\"\ntarget_app = \"{}\"",
            port(), port(), port(), port(), port(), port(), port(), "5e".repeat(20)
        ),
    );
    let report = patient.examine().await;
    for (key, risk) in [
        ("mesh.client_listen", "can call other apps as this one"),
        ("mesh.auth_listen", "can try which callers"),
        ("server.api_listen", "can pass for any app"),
        ("metrics.listen", "learns which apps this one calls"),
        ("tailscale.proxy_listen", "can call into the VPN as this node"),
    ] {
        let words = format!("whoever reaches `{key}` {risk}");
        let mend = report.says("configuration", "warning", &words);
        assert!(mend.contains("listen on 127.0.0.1"), "{mend}");
    }
    report.says(
        "configuration",
        "warning",
        "whoever reaches the forward `default` speaks",
    );
    report.says("configuration", "warning", "every app of this KMS may register");
    // In userspace, and with the default prefix. Nobody looks for it, as it has no type.
    let mend = report.says("vpn-reach", "warning", "vpn.prefix 100.128.0.0/10 lies outside");
    assert!(mend.contains("devices: [\"/dev/net/tun\"]"), "{mend}");
    // Open by default, for local apps: whether the internet gets there is asked where the machine runs.
    let mend = report.says("exposed", "note", "mesh.http_listen 0.0.0.0:");
    assert!(mend.contains("in [mesh]"), "{mend}");
}
