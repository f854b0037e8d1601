//! The gateway moves to another address, and its name tells.

use std::net::Ipv4Addr;

use crate::common::backend::Backend;
use crate::common::http::{With, get};
use crate::common::netns::Switch;
use crate::common::run;
use crate::site::{Id, Site};

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

#[test]
fn a_gateway_that_moves_is_followed_by_name() {
    run(async {
        let site = Site::new().await;
        let (a, b) = (Id::new("a1", 1), Id::new("b1", 1));
        let (one, two) = (site.host("one", &a).await, site.host("two", &b).await);
        let caller = site.machine(&one, "role = \"mesh\"");
        let called = site.machine(&two, "role = \"mesh\"\n[[backends]]\nname = \"web\"\nserver_name = \"_\"\nupstream = \"127.0.0.1:7000\"\n");
        let listener = two.inside.listen("127.0.0.1:7000".parse().expect("an address"));
        let _backend = Backend::behind(listener.expect("port 7000"), "web", None);
        let (caller, _called) = tokio::join!(caller.start(), called.start());
        let call = async |request: hyper::Request<_>| {
            let reply = caller.call(request.to_app(&b.app)).await.expect("an answer");
            assert_eq!(reply.status, 200, "{}", reply.text());
        };
        call(get("/before")).await;
        assert_eq!(site.gateway.opened(ELSEWHERE), 0);

        site.switch.add_address(ELSEWHERE).await;
        site.gateway.move_to(ELSEWHERE);
        let before = site.gateway.opened(Switch::ADDRESS);
        // Another target, so another connection.
        call(get("/new").with("x-dstack-target-instance", &b.instance)).await;
        assert_eq!(site.gateway.opened(ELSEWHERE), 1);
        assert_eq!(site.gateway.opened(Switch::ADDRESS), before);

        // The old address goes, with every connection that was kept there.
        site.gateway.close(Switch::ADDRESS);
        for round in 0..4 {
            call(get(&format!("/after-{round}"))).await;
        }
        assert_eq!(site.gateway.opened(Switch::ADDRESS), before);
    });
}
