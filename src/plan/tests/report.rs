//! What `plan` prints: what an edit costs, and no secret.

use super::*;

const MARK: &str = "s3cr3t";

/// Edits as operators make them: what each costs those who use the machine, and whether that is marked.
#[test]
fn a_plan_says_what_an_edit_costs() {
    let app = |n: u8| format!("aa000000000000000000000000000000000000{n:02}");
    let server = format!(
        "role = \"server\"\nallowed_apps = [\"{}\", \"{}\"]\n",
        app(1),
        app(2)
    );
    let node = "role = \"node\"\n[node]\nname = \"db-1\"\ntype = \"mongodb\"\n";
    let both = server.replace("\"server\"", "\"server+node\"") + "[node]\nname = \"db-1\"\n";
    let with = |text: &str, more: &str| format!("{text}{more}");
    let restricted = format!("{BACKEND}allowed_apps = [\"{}\", \"{}\"]\n", app(1), app(2));
    let hosted = BACKEND.replace("\"db\"", "\"db\"\nserver_name = \"db.local\"");
    for (from, to, disturbs, said) in [
        (
            PLAIN.to_owned(),
            BACKEND.to_owned(),
            false,
            &[
                "backend \"db\" was added, vpc.toml:2",
                "nginx: reload",
                "nobody who is served now",
            ][..],
        ),
        (
            hosted.clone(),
            PLAIN.to_owned(),
            true,
            &[
                "! backend \"db\" was removed",
                "peers that ask for Host db.local get 421",
            ],
        ),
        (
            with(&hosted, &BACKEND.replace("\"db\"", "\"rest\"")),
            BACKEND.replace("\"db\"", "\"rest\""),
            true,
            &["Host db.local are answered by backend \"rest\""],
        ),
        (
            BACKEND.to_owned(),
            BACKEND.replace("27017", "27018"),
            false,
            &["new requests go there"],
        ),
        (
            BACKEND.to_owned(),
            restricted.clone(),
            true,
            &["only apps", "every other gets 403", "listeners: update in place"],
        ),
        (
            restricted.clone(),
            restricted.replace(&format!("\"{}\", ", app(1)), ""),
            true,
            &["app aa00000000000000000000000000000000000001: 403"],
        ),
        (
            restricted.clone(),
            restricted.replace(&app(2), &app(3)),
            true,
            &["app aa00000000000000000000000000000000000002: 403"],
        ),
        (
            restricted.clone(),
            BACKEND.to_owned(),
            false,
            &["every app may call this backend"],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nhttps_listen = \"0.0.0.0:8443\"\n".to_owned(),
            true,
            &[
                "peers are refused at 0.0.0.0:443",
                "mesh.https_listen changed: \"0.0.0.0:8443\" (was \"0.0.0.0:443\"), vpc.toml:2",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nhttp_listen = \"127.0.0.1:80\"\n".to_owned(),
            true,
            &[
                "! nginx: restart, because mesh.http_listen changed",
                "new connections are refused for a moment",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nclient_listen = \"127.0.0.1:9091\"\n".to_owned(),
            true,
            &["refused at 127.0.0.1:8091", "listeners: update in place"],
        ),
        (
            server.clone(),
            with(&server, "[vpn]\nprefix = \"100.65.0.0/16\"\n"),
            true,
            &[
                "headscale: restart, because vpn.prefix changed",
                "nodes that have joined keep their addresses",
                "nobody can join",
            ],
        ),
        (
            server.clone(),
            with(&server, "[vpn]\nbase_domain = \"vpc.internal\"\n"),
            true,
            &[
                "<node>.vpc.internal",
                "names below dstack.internal are found no longer",
            ],
        ),
        (
            server.clone(),
            with(&server, "[server]\nurl = \"https://vpn.example.com\"\n"),
            true,
            &["nodes go on at the old URL as long as it answers"],
        ),
        (
            server.clone(),
            server.replace(&format!("\"{}\", ", app(1)), ""),
            true,
            &[
                "app aa00000000000000000000000000000000000001: 403 from the VPC API",
                "stay in the VPN",
            ],
        ),
        (
            PLAIN.to_owned(),
            server.clone(),
            false,
            &["Headscale and the VPC API begin to serve", "headscale is started"],
        ),
        (
            server.clone(),
            PLAIN.to_owned(),
            true,
            &["nobody can join the VPN", "headscale ends"],
        ),
        (
            both.clone(),
            server.clone(),
            true,
            &["this machine leaves the VPN", "tailscaled ends"],
        ),
        (
            node.to_owned(),
            node.replace("db-1", "db-2"),
            true,
            &["by its new name only"],
        ),
        (
            node.to_owned(),
            node.replace("mongodb", "redis"),
            true,
            &["discovered as redis, and as mongodb no longer"],
        ),
        (
            node.to_owned(),
            with(node, "tun = \"userspace\"\n"),
            true,
            &["tailscaled is restarted: connections through the VPN pause"],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\ndrain_timeout = \"5m\"\n".to_owned(),
            true,
            &[
                "dstack-vpc itself goes on",
                "! supervisord",
                "nginx is restarted: new connections are refused",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nhttp_listen = \"127.0.0.1:80\"\ndrain_timeout = \"5m\"\n".to_owned(),
            true,
            &[
                "local apps are refused at every address of port 80 but 127.0.0.1",
                "nginx is restarted: new connections are refused",
                "\n  nginx: restart, because mesh.http_listen changed\n    supervisord starts it anew before",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[log]\nformat = \"json\"\n".to_owned(),
            false,
            &["from the next start of the daemon on"],
        ),
    ] {
        let plan = explained(&from, &to, DOMAIN);
        let text = printed(&plan);
        if std::env::var_os("SHOW").is_some() {
            println!("=== {from}\n--> {to}\n{text}\n");
        }
        // What differs in every change is no news.
        let mut added = text
            .lines()
            .filter(|line| line.starts_with("+") && line.contains("return 200 \""));
        assert!(added.all(|line| line.contains("(tag)")), "{text}");
        for words in said {
            assert!(text.contains(words), "not {words:?}:\n{text}");
        }
        assert_eq!(Report::from(&plan).disturbs, disturbs, "{text}");
        let marked = text
            .lines()
            .take_while(|line| !line.starts_with("---"))
            .any(|line| line.starts_with("! "));
        assert_eq!(marked, disturbs, "{text}");
    }
}

#[test]
fn a_plan_shows_secrets_as_changed_and_never_as_values() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    let conf = present.files.get_mut("nginx/nginx.conf").unwrap();
    conf.extend(format!("proxy_set_header Authorization \"Bearer {MARK}\";\n").bytes());
    let path = "templates/supervisord.conf.tera";
    present.files.insert(
        path.to_owned(),
        format!("command=a --token={MARK}1\n").into_bytes(),
    );
    let mut desired = desired;
    let mut file = desired.files["nginx/nginx.conf"].clone();
    file.bytes = format!("command=a --token={MARK}2\n").into_bytes();
    desired.files.insert(path.to_owned(), file);
    let plan = plan(&desired, &present);
    assert_eq!(plan.files.len(), 2, "{plan:#?}");
    let text = printed(&plan);
    assert!(
        !text.contains(MARK)
            && !serde_json::to_string(&Report::from(&plan))
                .unwrap()
                .contains(MARK),
        "{text}"
    );
    assert!(
        text.contains("-command=a --token=(secret)\n+command=a --token=(another secret)"),
        "{text}"
    );
    assert!(text.contains("Authorization (secret)"), "{text}");
}
