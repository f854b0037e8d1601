//! The node against a real Headscale and a real tailscaled (userspace networking, so without root), and an API that
//! can be told to misbehave.

#[path = "node/api.rs"]
mod api;
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "headscale/place.rs"]
mod place;
mod rendered;
#[path = "node/site.rs"]
mod site;

use std::time::Duration;

use common::poll;
use dstack_vpc::api::{Api, ApiSettings};
use dstack_vpc::node::{NodeSettings, Server, Step};
use dstack_vpc::paths::StateDir;
use dstack_vpc::registry::RegistrySettings;
use dstack_vpc::spec::{AllowedApps, Store};
use nix::unistd::{Group, getgid};
use site::{INSTANCE, PATIENCE, Site};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_and_tells_its_apps() {
    let site = Site::joined().await;
    let status = site.status();
    assert_eq!(status.problem, None);
    assert_eq!(status.dns_name.as_deref(), Some("db-1.dstack.internal"));
    let address = status.address.expect("an address");
    assert!(status.announced.is_some());
    let steps: Vec<_> = status.took.iter().map(|took| took.step).collect();
    assert!(
        steps.contains(&Step::Register) && steps.contains(&Step::Up),
        "{steps:?}"
    );
    println!("took {:?}", status.took);

    let announced = site.api.announcements();
    let [first, ..] = announced.as_slice() else {
        panic!("not announced")
    };
    for (name, value) in [
        ("uuid", INSTANCE),
        ("node_type", "mongodb"),
        ("hostname", "db-1.dstack.internal"),
        ("name", "db-1"),
        ("silence", "300"),
        ("tailscale_ip", &address.to_string()),
    ] {
        assert_eq!(first.get(name).map(String::as_str), Some(value), "{name}");
    }

    for (name, content) in [
        ("shared_key", api::SHARED_KEY.to_owned()),
        ("server_url", site.headscale_url()),
        ("tailscale_ip", address.to_string()),
        ("actual_hostname", "db-1.dstack.internal".to_owned()),
        ("instance_id", INSTANCE.to_owned()),
        ("vpc_server_app_id", site::SERVER.to_owned()),
    ] {
        assert_eq!(site.file(name), format!("{content}\n"), "{name}");
    }
    let json: serde_json::Value = serde_json::from_str(&site.file("tailscale_status.json")).expect("JSON");
    assert_eq!(json["Self"]["TailscaleIPs"][0], address.to_string());

    assert_eq!(site.modes("vpc/0"), [0o600]);
    assert_eq!(site.modes("secrets"), [0o600]);
    assert!(!site.has_key(), "a used key is not kept");
    let quiet = poll(PATIENCE, async || {
        (site.prefs()["AutoUpdate"]["Apply"] == false).then_some(())
    });
    assert!(quiet.await.is_some(), "{}", site.prefs());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_finds_the_node_joined_and_does_nothing_again() {
    let mut site = Site::joined().await;
    let before = (site.members(), site.status().address);
    site.stop_node().await;
    let announced = site.api.announcements().len();
    site.start_node();
    let status = site.until_joined().await;
    assert_eq!((site.members(), status.address), before);
    assert_eq!(site.api.registrations().len(), 1);
    assert!(site.api.announcements().len() > announced);
    let steps: Vec<_> = status.took.iter().map(|took| took.step).collect();
    assert!(
        !steps.contains(&Step::Register) && !steps.contains(&Step::Up),
        "{steps:?}"
    );
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_used_expired_or_nonsense_are_replaced() {
    let mut site = Site::joined().await;
    let used = site.api.keys().pop().expect("a key");
    let user = site.headscale.cli(&["users", "list"])[0]["id"].to_string();
    let short = ["preauthkeys", "create", "--user", &user, "--expiration", "1ms"];
    let expired = site.headscale.cli(&short)["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    for bad in [&used, &expired, "hskey-auth-nonsense"] {
        site.api.hand_out(bad);
    }
    site.stop_node().await;
    site.kill_tailscaled();
    site.wipe_tailscaled();
    site.wipe_node();
    site.start_tailscaled();
    site.start_node();
    site.until("refused", |it| {
        let refused = |words: &String| words.contains("does not let this node in");
        it.problem.as_ref().is_some_and(refused) && it.retry_at.is_some()
    })
    .await;
    let status = site.until_joined().await;
    assert_eq!(status.retry_at, None);
    let registrations = site.api.registrations();
    assert_eq!(registrations.len(), 5, "the first, three bad ones, the last");
    assert!(
        registrations.iter().all(|it| it["instance_id"] == INSTANCE),
        "the same record"
    );
    assert!(!site.has_key());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_tailscaled_comes_back_as_the_same_node() {
    let mut site = Site::joined().await;
    let before = (site.members(), site.status().address);
    site.kill_tailscaled();
    let status = site.until("without tailscaled", |it| it.problem.is_some()).await;
    assert_eq!(status.step, Step::Tailscaled);
    assert!(status.problem.expect("a problem").contains("tailscaled.sock"));
    site.start_tailscaled();
    let status = site.until_joined().await;
    assert_eq!((site.members(), status.address), before);
    assert_eq!(site.api.registrations().len(), 1);

    // What it knew is lost: it registers and logs in anew.
    site.kill_tailscaled();
    site.until("without tailscaled", |it| it.step == Step::Tailscaled)
        .await;
    site.wipe_tailscaled();
    site.start_tailscaled();
    site.until_joined().await;
    assert_eq!(site.api.registrations().len(), 2);

    // What we knew is lost, and tailscaled is logged in still: the key that comes with it is not used.
    site.stop_node().await;
    site.wipe_node();
    let before = site.members();
    site.start_node();
    site.until_joined().await;
    assert_eq!(site.api.registrations().len(), 3);
    let dropped = poll(PATIENCE, async || (!site.has_key()).then_some(()));
    assert!(dropped.await.is_some(), "an unused key is not kept");
    assert_eq!(site.members(), before);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_headscale_expires_or_forgets_logs_in_anew() {
    let site = Site::joined().await;
    let address = site.status().address;
    let [(id, ..)] = site.members()[..] else {
        panic!("{:?}", site.members())
    };
    site.headscale
        .cli(&["nodes", "expire", "--identifier", &id.to_string()]);
    site.until("logged out", |it| it.step < Step::Joined).await;
    let status = site.until_joined().await;
    assert_eq!((status.address, site.api.registrations().len()), (address, 2));

    // tailscaled itself does not notice that its node is deleted; the server tells.
    site.headscale
        .cli(&["nodes", "delete", "--identifier", &id.to_string(), "--force"]);
    assert_eq!(site.members(), []);
    site.api.set_disowns(true);
    site.until("disowned", |it| it.step < Step::Joined).await;
    site.api.set_disowns(false);
    site.until_joined().await;
    assert_eq!(site.members().len(), 1);
    assert_eq!(site.api.registrations().len(), 3);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_waited_for() {
    let mut site = Site::new().await;
    site.api.set_down(true);
    site.start_tailscaled();
    site.start_node();
    let status = site
        .until("told why", |it| it.problem.is_some() && it.retry_at.is_some())
        .await;
    assert_eq!(status.step, Step::Register);
    let words = status.problem.expect("a problem");
    assert!(words.contains("the gateway closed the connection"), "{words}");
    site.api.set_down(false);
    site.until_joined().await;

    // Later it makes no difference to the VPN, and no step back.
    let address = site.status().address;
    let mut watch = site.watch();
    site.api.set_down(true);
    site.until("told", |it| it.problem.is_some()).await;
    let heard = site.api.announcements().len();
    site.api.set_down(false);
    site.until("well", |it| it.problem.is_none()).await;
    assert!(site.api.announcements().len() > heard);
    let status = watch.borrow_and_update().clone();
    assert_eq!((status.step, status.address), (Step::Joined, address));
    assert!(status.since.expect("a time") < status.announced.expect("a time"));

    // Headscale alone is down.
    site.headscale.stop();
    let status = site.until("told", |it| it.problem.is_some()).await;
    assert_eq!((status.step, status.address), (Step::Joined, address));
    assert!(status.problem.expect("a problem").contains("stays in the VPN"));
    site.until_heard(2).await;
    site.headscale.start().await;
    let status = site.until_joined().await;
    assert_eq!((status.address, site.api.registrations().len()), (address, 1));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_followed_while_it_runs() {
    let site = Site::joined().await;
    let last = || site.api.announcements().pop().expect("an announcement");
    let until = async |name: &str, value: &str| {
        let found = poll(PATIENCE, async || (last()[name] == value).then_some(())).await;
        assert!(found.is_some(), "{name} is not {value}: {:?}", last());
    };
    site.change(|it| it.node_type = Some("redis".parse().expect("a type")));
    until("node_type", "redis").await;
    assert_eq!(last()["hostname"], "db-1.dstack.internal");

    site.change(|it| it.name = "cache-1".parse().expect("a name"));
    until("hostname", "cache-1.dstack.internal").await;
    assert_eq!(last()["name"], "cache-1");
    let renamed = poll(PATIENCE, async || {
        (site.file("actual_hostname") == "cache-1.dstack.internal\n").then_some(())
    });
    assert!(renamed.await.is_some());
    assert_eq!(site.api.registrations().len(), 1);

    // Without a type it is in the VPN and says nothing.
    site.change(|it| it.node_type = None);
    site.until_joined().await;
    let mut watch = site.watch();
    watch.mark_unchanged();
    let heard = site.api.announcements().len();
    let more = poll(Duration::from_secs(3), async || {
        (site.api.announcements().len() > heard).then_some(())
    });
    assert!(more.await.is_none(), "it is announced without a type");

    // Another server, which has another URL for the same Headscale.
    site.api
        .set_server_url(format!("http://localhost:{}", site.headscale.addr().port()));
    let other = "5e44e40000000000000000000000000000000003";
    site.change(|it| {
        it.server = Server::App(other.parse().expect("an app id"));
        it.node_type = Some("mongodb".parse().expect("a type"));
    });
    let moved = poll(PATIENCE, async || {
        (site.file("vpc_server_app_id") == format!("{other}\n")).then_some(())
    });
    assert!(moved.await.is_some(), "{:?}", site.status());
    site.until_joined().await;
    assert_eq!(site.prefs()["ControlURL"], site.file("server_url").trim());
    assert!(site.file("server_url").contains("localhost"));
    assert_eq!(site.api.targets().pop().as_deref(), Some(other));
    assert_eq!(site.members().len(), 1, "one machine is one node");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_no_node_any_more_serves_nothing_of_it() {
    let site = Site::joined().await;
    let settings = site.settings();
    let address = site.status().address;
    site.set(None);
    site.until("nothing", |it| *it == Default::default()).await;
    assert_eq!(site.files("vpc/0"), Vec::<std::path::PathBuf>::new());
    site.set(Some(settings));
    let status = site.until_joined().await;
    assert_eq!((status.address, site.api.registrations().len()), (address, 1));
    assert_eq!(
        site.file("tailscale_ip"),
        format!("{}\n", address.expect("an address"))
    );
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_said_and_what_can_be_made_up_is() {
    let mut site = Site::new().await;
    let complete = site.settings();
    site.set(Some(NodeSettings {
        app_id: None,
        tailscale: None,
        instance_id: None,
        ..complete.clone()
    }));
    site.start_tailscaled();
    site.start_node();
    let status = site.until("told", |it| it.problem.is_some()).await;
    assert_eq!(status.step, Step::Identity);
    site.change(|it| it.app_id = complete.app_id);
    site.until("told", |it| {
        it.step == Step::Tailscaled
            && it
                .problem
                .as_ref()
                .is_some_and(|words| words.contains("not installed"))
    })
    .await;
    assert_eq!(site.api.registrations().len(), 0);
    site.change(|it| it.tailscale = complete.tailscale);
    site.until_joined().await;
    let id = site.file("instance_id");
    assert_eq!(id.trim().len(), 40);
    assert_eq!(site.api.registrations()[0]["instance_id"], id.trim());

    // It is the same one in the next life, and for another server.
    site.stop_node().await;
    site.start_node();
    site.until_joined().await;
    site.change(|it| it.server = Server::SameApp);
    let own = "c11e000000000000000000000000000000000001\n";
    let moved = poll(PATIENCE, async || {
        (site.file("vpc_server_app_id") == own).then_some(())
    });
    assert!(moved.await.is_some());
    assert!(
        site.api
            .registrations()
            .iter()
            .all(|it| it["instance_id"] == id.trim())
    );

    // Heartbeats are no news.
    site.until_joined().await;
    site.until_heard(1).await;
    let mut watch = site.watch();
    watch.mark_unchanged();
    site.until_heard(3).await;
    assert!(!watch.has_changed().expect("a node"), "{:#?}", site.status());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_argument_and_in_no_log() {
    let mut site = Site::new().await;
    let log = site::Log::capture();
    let watching = site::CommandLines::watch(site.state().root());
    site.api.hand_out("hskey-auth-nonsense-of-this-test");
    site.start_tailscaled();
    site.start_node();
    site.until_joined().await;
    let lines = watching.end();
    let keys = site.api.keys();
    assert_eq!(keys.len(), 2);
    let secrets = || keys.iter().map(String::as_str).chain([api::SHARED_KEY]);
    assert!(
        lines.iter().any(|line| line.contains("--auth-key=file:")),
        "no login was seen: {lines:#?}"
    );
    for secret in secrets() {
        assert!(lines.iter().all(|line| !line.contains(secret)));
        assert!(!log.text().contains(secret), "{}", log.text());
        assert!(!format!("{:?}", site.status()).contains(secret));
    }
    assert!(log.text().contains("registered"), "{}", log.text());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_nginx_may_read_what_they_serve() {
    let mut site = Site::new().await;
    let group = Group::from_gid(getgid())
        .expect("a group")
        .expect("its name")
        .name;
    site.change(|it| it.readers = Some("no-such-group".to_owned()));
    site.start_tailscaled();
    site.start_node();
    let status = site
        .until("told", |it| it.problem.is_some() && it.retry_at.is_some())
        .await;
    assert_eq!(status.step, Step::Address);
    assert!(status.problem.expect("a problem").contains("no-such-group"));
    assert_eq!(site.api.announcements().len(), 0);
    site.change(|it| it.readers = Some(group));
    site.until_joined().await;
    assert_eq!(site.modes("vpc/0"), [0o640]);
    assert_eq!(site.modes("secrets"), [0o600]);

    // Somebody takes files away, or leaves others.
    let shared_key = site.state().vpc().join("shared_key");
    std::fs::write(&shared_key, "other").expect("written");
    std::fs::remove_file(site.state().vpc().join("tailscale_ip")).expect("removed");
    let repaired = poll(PATIENCE, async || {
        let is_well =
            site.file("shared_key").trim() == api::SHARED_KEY && !site.file("tailscale_ip").is_empty();
        is_well.then_some(())
    });
    assert!(repaired.await.is_some());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_its_own_node_and_a_deleted_one_finds_out() {
    let mut site = Site::new().await;
    let app = site.settings().app_id;
    let home = tempfile::tempdir().expect("a temporary directory");
    let spec = dstack_vpc::spec::Spec::default();
    let server = Api::start(
        ApiSettings {
            listen: "127.0.0.1:0".parse().expect("an address"),
            allowed_apps: AllowedApps::from_iter([]),
            own_app: app,
            server_url: Ok("https://nowhere.example.com".to_owned()),
            prefix: spec.vpn.prefix,
            join_key_lifetime: spec.server.join_key_lifetime,
            join_key_reusable: false,
            requests_per_hour: 0,
            registrations_per_hour: 0,
            registry: RegistrySettings {
                store: Store::Embedded,
                endpoints: Vec::new(),
                silence: spec.registry.silence,
                forget_after: spec.registry.forget_after,
            },
            headscale: Some(site.headscale.access()),
        },
        &StateDir::new(home.path()),
    )
    .expect("the API");
    let here = Server::Here {
        api: server.local_addr().await,
        headscale: site.headscale.addr(),
    };
    site.change(|it| it.server = here);
    site.start_tailscaled();
    site.start_node();
    let status = site.until_joined().await;
    assert_eq!(site.file("server_url"), "https://nowhere.example.com\n");
    assert_eq!(site.prefs()["ControlURL"], site.headscale_url());
    let known = server.nodes().await.expect("nodes");
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].id.as_str(), known[0].ip), (INSTANCE, status.address));

    let [(id, ..)] = site.members()[..] else {
        panic!("{:?}", site.members())
    };
    site.headscale
        .cli(&["nodes", "delete", "--identifier", &id.to_string(), "--force"]);
    site.until("disowned", |it| it.step < Step::Joined).await;
    site.until_joined().await;
    assert_eq!(site.members().len(), 1);
    assert_eq!(server.nodes().await.expect("nodes").len(), 1);
    site.end().await;
    server.shutdown().await;
}
