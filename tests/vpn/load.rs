//! Registration under load, while what it is written to dies: what was acknowledged is there afterwards, once.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::http::{With, get, post};
use crate::common::machine::Machine;
use crate::common::run;
use crate::etcd::Etcd;
use crate::site::{Id, Site};
use crate::vpc::{server_toml, until};

/// How many nodes announce themselves, and how many at a time.
const NODES: usize = 240;
const WORKERS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn a_server_killed_under_load_loses_nothing() {
    run(async {
        let site = Site::new().await;
        let (server_id, caller_id) = (Id::new("5e44e4", 1), Id::new("ca11e4", 1));
        let server = site.host("server", &server_id).await;
        let caller = site.host("caller", &caller_id).await;
        let caller = site.machine(&caller, "role = \"mesh\"").spawn();
        let mut server = site.machine(&server, &server_toml(&[&caller_id])).spawn();
        tokio::join!(caller.until_ready(), server.until_ready());

        let load = Load::new(&caller, &server_id);
        let trouble = async {
            load.until_acknowledged(NODES / 3).await;
            server.crash();
            server.spawn_again();
        };
        tokio::join!(load.run(), trouble);
        load.assert_that_all_are_there(&server_id).await;
    });
}

#[test]
fn servers_that_share_an_etcd_survive_its_leader_and_each_other() {
    run(async {
        let site = Site::new().await;
        let mut etcd = Etcd::start(&site.switch).await;
        let (first_id, second_id) = (Id::new("5e44e4", 1), Id::new("5e44e4", 2));
        let caller_id = Id::new("ca11e4", 1);
        let first = site.host("first", &first_id).await;
        let second = site.host("second", &second_id).await;
        let caller = site.host("caller", &caller_id).await;
        let toml = format!(
            "{}[registry]\nstore = \"etcd\"\nendpoints = {}\n",
            server_toml(&[&caller_id]),
            etcd.endpoints()
        );
        let caller = site.machine(&caller, "role = \"mesh\"").spawn();
        let mut first = site.machine(&first, &toml).spawn();
        let second = site.machine(&second, &toml).spawn();
        tokio::join!(caller.until_ready(), first.until_ready(), second.until_ready());

        let load = Load::new(&caller, &first_id);
        let trouble = async {
            load.until_acknowledged(NODES / 4).await;
            etcd.kill_the_leader().await;
            load.until_acknowledged(NODES / 2).await;
            first.crash();
        };
        tokio::join!(load.run(), trouble);
        load.assert_that_all_are_there(&second_id).await;
        first.spawn_again();
        load.assert_that_all_are_there(&first_id).await;
    });
}

/// Many nodes that announce themselves through one machine's mesh.
struct Load<'a> {
    caller: &'a Machine,
    server: &'a Id,
    next: AtomicUsize,
    acknowledged: Mutex<BTreeSet<String>>,
}

impl<'a> Load<'a> {
    /// To any instance of the server's app.
    fn new(caller: &'a Machine, server: &'a Id) -> Self {
        Self {
            caller,
            server,
            next: AtomicUsize::new(0),
            acknowledged: Mutex::default(),
        }
    }

    /// Announces every node, each again until it is acknowledged.
    async fn run(&self) {
        let worker = async || {
            loop {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                if number >= NODES {
                    return;
                }
                let announced = until(PATIENCE, "a node is announced", async || {
                    self.announce(number).await
                });
                announced.await.expect("an acknowledgement");
            }
        };
        futures_util::future::join_all((0..WORKERS).map(|_| worker())).await;
    }

    async fn announce(&self, number: usize) -> Result<(), String> {
        let uuid = format!("load-{number}");
        let path = format!("/api/nodes/update?uuid={uuid}&node_type=load&hostname={uuid}.dstack.internal");
        let request = post(&path, "")
            .to_app(&self.server.app)
            .with("host", "vpc-server");
        let reply = self.caller.call(request).await.map_err(|e| e.to_string())?;
        match reply.status {
            200 => {
                self.acknowledged.lock().expect("no panic meanwhile").insert(uuid);
                Ok(())
            }
            status => Err(format!("{status} {}", reply.text())),
        }
    }

    async fn until_acknowledged(&self, count: usize) {
        let enough = until(PATIENCE, "the load runs", async || {
            let now = self.acknowledged.lock().expect("no panic meanwhile").len();
            (now >= count).then_some(()).ok_or(format!("{now} of {count}"))
        });
        enough.await.expect("progress");
    }

    /// With this instance of the server, each once.
    async fn assert_that_all_are_there(&self, server: &Id) {
        let listed = until(PATIENCE, "the server answers", async || {
            let request = get("/api/discover/load")
                .to_app(&server.app)
                .with("x-dstack-target-instance", &server.instance)
                .with("host", "vpc-server");
            let reply = self.caller.call(request).await.map_err(|e| e.to_string())?;
            match reply.status {
                200 => Ok(reply.json()),
                status => Err(format!("{status} {}", reply.text())),
            }
        });
        let listed = listed.await.expect("the nodes");
        let nodes = listed["nodes"].as_array().expect("a list").iter();
        let found: Vec<_> = nodes
            .map(|node| node["uuid"].as_str().expect("a uuid").to_owned())
            .collect();
        let once: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!(found.len(), once.len(), "some are there twice");
        assert_eq!(once, *self.acknowledged.lock().expect("no panic meanwhile"));
        assert_eq!(once.len(), NODES);
    }
}
