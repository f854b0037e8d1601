//! The ground the other tests stand on.

use crate::common::backend::Backend;
use crate::common::http::{With, get};
use crate::common::run;
use crate::site::{Id, Site};

#[test]
fn hosts_reach_each_other_and_the_gateway_and_nothing_else() {
    run(async {
        let site = Site::new().await;
        let (a, b) = (Id::new("a1", 1), Id::new("b1", 1));
        let (one, two) = (site.host("one", &a).await, site.host("two", &b).await);
        let ip = two.ip.to_string();
        let ping = ["ping", "-c", "1", "-W", "5", &ip];
        one.inside.tell(&ping).await.expect("a way through the switch");

        let routes = one.inside.tell(&["ip", "route"]).await.expect("routes");
        assert!(routes.starts_with("10.77.0.0/24 dev eth0"), "{routes}");
        assert_eq!(routes.lines().count(), 1, "{routes}");
        let name = format!("{}-80.apps.vpc.test", b.app);
        let found = one
            .inside
            .tell(&["getent", "hosts", &name])
            .await
            .expect("a name");
        assert!(found.starts_with("10.77.0.1 "), "{found}");
        one.inside
            .tell(&["getent", "hosts", "example.com"])
            .await
            .expect_err("the outside has no names here");

        two.unplug().await;
        one.inside
            .tell(&["ping", "-c", "1", "-W", "1", &ip])
            .await
            .expect_err("the cable is out");
        two.plug().await;
        one.inside.tell(&ping).await.expect("the cable is in");
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert!(
            !resolv.contains("10.77.0.1"),
            "the real one is untouched: {resolv}"
        );
    });
}

#[test]
fn the_mesh_goes_through_the_gateway_by_name() {
    run(async {
        let site = Site::new().await;
        let (a, b) = (Id::new("a1", 1), Id::new("b1", 1));
        let (one, two) = (site.host("one", &a).await, site.host("two", &b).await);
        let caller = site.machine(&one, "role = \"mesh\"");
        let called = site.machine(&two, "role = \"mesh\"\n[[backends]]\nname = \"web\"\nserver_name = \"_\"\nupstream = \"127.0.0.1:7000\"\n");
        let listener = two.inside.listen("127.0.0.1:7000".parse().expect("an address"));
        let backend = Backend::behind(listener.expect("port 7000"), "web", None);
        let (caller, _called) = tokio::join!(caller.start(), called.start());
        let reply = caller
            .call(get("/hello").to_app(&b.app))
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
        let caller_is_known = format!(r#"["x-dstack-app-id","{}"]"#, a.app);
        assert!(reply.text().contains(&caller_is_known), "{}", reply.text());
        drop(backend);
    });
}
