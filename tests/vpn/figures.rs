//! How long a node takes from its start to being announced, step by step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dstack_vpc::node::Step;

use crate::common::run;
use crate::site::{Id, Site};
use crate::vpc::server_toml;

const TIMES: u8 = 10;

#[test]
#[ignore = "measures; `make bench-vpn` runs it"]
fn joining_takes() {
    run(async {
        let site = Site::new().await;
        let (server_id, app) = (Id::new("5e44e4", 1), "db");
        let server = site.host("server", &server_id).await;
        let server = site
            .machine(&server, &server_toml(&[&Id::new(app, 0)]))
            .start()
            .await;
        let mut took: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for number in 1..=TIMES {
            let name = format!("db-{number}");
            let host = site.host(&name, &Id::new(app, number)).await;
            let toml = format!(
                "role = \"node\"\n[node]\nname = \"{name}\"\ntype = \"mongodb\"\nserver_app_id = \"{}\"\n",
                server_id.app
            );
            let start = Instant::now();
            let node = site.machine(&host, &toml).spawn();
            let joined = node.until(Duration::from_secs(60), "it has joined", |status| {
                status.node.as_ref().is_some_and(|node| node.step == Step::Joined)
            });
            let status = joined.await.node.expect("it is a node");
            let all = (
                "from `up` to announced".to_owned(),
                start.elapsed().as_millis() as u64,
            );
            let steps = status
                .took
                .iter()
                .map(|it| (format!("step {:?}", it.step), it.ms));
            for (what, ms) in steps.chain([all]) {
                took.entry(what).or_default().push(ms);
            }
        }
        println!("a node joins, {TIMES} times, in ms: median, slowest");
        for (what, mut ms) in took {
            ms.sort();
            println!("  {what:<24} {:>6} {:>6}", ms[ms.len() / 2], ms[ms.len() - 1]);
        }
        drop(server);
    });
}
