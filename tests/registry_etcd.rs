//! The registry in a real etcd: several servers share it, and any of them, and any member of etcd, may die.

#[path = "common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "registry/kit.rs"]
mod kit;
#[path = "registry/line.rs"]
#[allow(unreachable_pub)]
mod line;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::etcd::Etcd;
use common::poll;
use dstack_vpc::registry::{Change, Registry, RegistryError, RegistrySettings, Stored, open};
use dstack_vpc::spec::Store;
use kit::*;
use line::Line;
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn settings(etcd: &Etcd) -> RegistrySettings {
    RegistrySettings {
        store: Store::Etcd,
        endpoints: etcd.endpoints().iter().map(|url| url.parse().unwrap()).collect(),
        silence: Duration::from_secs(3600),
        forget_after: Duration::ZERO,
    }
}

async fn server_with(settings: &RegistrySettings) -> Arc<dyn Registry> {
    let nowhere = std::path::Path::new("/nonexistent");
    let opened = open(settings, nowhere, CancellationToken::new()).await;
    opened.unwrap_or_else(|e| panic!("{e}"))
}

async fn server(etcd: &Etcd) -> Arc<dyn Registry> {
    server_with(&settings(etcd)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_what_they_know() {
    let etcd = Etcd::start(1).await;
    let (one, two) = (server(&etcd).await, server(&etcd).await);
    let mongodb = kind("mongodb");

    let empty = two.discover(&mongodb).index;
    let waiting = {
        let (two, mongodb) = (Arc::clone(&two), mongodb.clone());
        tokio::spawn(async move { two.changed(&mongodb, empty).await })
    };
    let put = one.put(app(1), id("a"), announce("mongodb", "db-1")).await;
    assert_eq!(put, Ok(Stored::Created));
    // At once where it was written, soon everywhere.
    assert_eq!(names(&one.discover(&mongodb)), ["a"]);
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("woken")
        .unwrap();
    assert_eq!(two.discover(&mongodb).index, one.discover(&mongodb).index);
    assert_eq!(names(&two.discover(&mongodb)), ["a"]);

    for change in [Change::default(), announce("mongodb", "evil")] {
        let refused = Err(RegistryError::NotYours(id("a")));
        assert_eq!(one.put(app(2), id("a"), change.clone()).await, refused);
        assert_eq!(two.put(app(2), id("a"), change).await, refused);
    }
    assert_eq!(
        two.put(app(1), id("a"), announce("mongodb", "db-9")).await,
        Ok(Stored::Updated)
    );
    assert_eq!(
        two.put(app(1), id("a"), announce("mongodb", "db-9")).await,
        Ok(Stored::Updated)
    );
    assert_eq!(
        two.node(&id("a"))
            .unwrap()
            .node
            .hostname
            .as_ref()
            .unwrap()
            .as_str(),
        "db-9.dstack.internal"
    );

    // The same new id at both at once: exactly one app wins.
    for round in 0..30 {
        let id = id(&format!("race-{round}"));
        let (first, second) = tokio::join!(
            one.put(app(1), id.clone(), Change::default()),
            two.put(app(2), id.clone(), Change::default())
        );
        let refused = Err(RegistryError::NotYours(id.clone()));
        assert!(
            (first == Ok(Stored::Created) && second == refused)
                || (first == refused && second == Ok(Stored::Created)),
            "{first:?} {second:?}"
        );
    }

    let secrets = tokio::join!(one.shared_secret(vec![1; 64]), two.shared_secret(vec![2; 64]));
    assert_eq!(secrets.0, secrets.1);
    let secret = secrets.0.unwrap();
    assert!(secret == [1; 64] || secret == [2; 64]);

    let before = one.nodes();
    one.close().await;
    two.close().await;
    let again = server(&etcd).await;
    let records =
        |entries: Vec<dstack_vpc::registry::Entry>| entries.into_iter().map(|e| e.node).collect::<Vec<_>>();
    assert_eq!(records(again.nodes()), records(before));
    assert_eq!(again.shared_secret(vec![3; 64]).await, Ok(secret));
    assert_eq!(again.trouble(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_nodes_leave_return_and_are_forgotten_everywhere() {
    let etcd = Etcd::start(1).await;
    let mut settings = settings(&etcd);
    settings.forget_after = Duration::from_secs(12);
    let (one, two) = (server_with(&settings).await, server_with(&settings).await);
    let mongodb = kind("mongodb");
    let quiet = |seconds| Change {
        silence: Some(Duration::from_secs(seconds)),
        ..announce("mongodb", "db")
    };
    for (name, seconds) in [("brief", 2), ("patient", 3600), ("for-ever", 0)] {
        one.put(app(1), id(name), quiet(seconds)).await.unwrap();
    }
    until("all are seen", || {
        names(&two.discover(&mongodb)) == ["brief", "for-ever", "patient"]
    })
    .await;
    until("brief leaves", || {
        let seen = [&one, &two].map(|server| names(&server.discover(&mongodb)));
        seen == [["for-ever", "patient"]; 2]
    })
    .await;
    assert_eq!(one.discover(&mongodb).index, two.discover(&mongodb).index);
    assert!(!two.node(&id("brief")).unwrap().present);

    // A sign of life through the other server is enough, and is seen there at once.
    assert_eq!(
        two.put(app(1), id("brief"), Change::default()).await,
        Ok(Stored::Updated)
    );
    assert!(two.node(&id("brief")).unwrap().present);
    until("brief is back", || {
        names(&one.discover(&mongodb)).contains(&"brief".to_owned())
    })
    .await;

    // As long as it says something, it stays, whichever server hears it.
    let end = tokio::time::Instant::now() + Duration::from_secs(6);
    let mut turn = [&one, &two].into_iter().cycle();
    while tokio::time::Instant::now() < end {
        turn.next()
            .unwrap()
            .put(app(1), id("brief"), quiet(2))
            .await
            .unwrap();
        for server in [&one, &two] {
            assert!(server.node(&id("brief")).unwrap().present);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until("brief is forgotten", || {
        [&one, &two]
            .iter()
            .all(|server| server.node(&id("brief")).is_none())
    })
    .await;
    assert!(one.node(&id("patient")).is_some() && one.node(&id("for-ever")).is_some());
    let reply = etcd
        .call("kv/range", &json!({"key": base64("/dstack-vpc/nodes/brief")}))
        .await;
    assert!(reply["kvs"].is_null(), "{reply}");
    // It may come again, as somebody else's.
    assert_eq!(
        one.put(app(2), id("brief"), Change::default()).await,
        Ok(Stored::Created)
    );
}

/// Joins nodes through the servers by turns, as fast as they answer, until `enough`. Gives the ids that were
/// acknowledged, and how often an id was created.
async fn join_until(servers: Vec<Arc<dyn Registry>>, enough: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (servers, enough) = (servers.clone(), Arc::clone(&enough));
        writers.spawn(async move {
            let mut acknowledged = BTreeSet::new();
            for number in 0.. {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("w{writer}-{number}");
                let server = &servers[number % servers.len()];
                match server.put(app(writer), id(&name), announce("load", &name)).await {
                    Ok(stored) => {
                        assert_eq!(stored, Stored::Created, "{name} was created twice");
                        acknowledged.insert(name);
                    }
                    Err(RegistryError::Unavailable(_)) => {}
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            acknowledged
        });
    }
    writers.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_loses_nothing() {
    let mut etcd = Etcd::start(3).await;
    let servers = vec![server(&etcd).await, server(&etcd).await];
    let enough = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(join_until(servers.clone(), Arc::clone(&enough)));
    for _ in 0..2 {
        let grown = servers[0].census().nodes + 100;
        until("nodes join", || servers[0].census().nodes > grown).await;
        let leader = etcd.leader().await;
        etcd.kill(leader);
        let grown = servers[0].census().nodes + 100;
        until("nodes join without the leader", || {
            servers.iter().all(|server| server.census().nodes > grown)
        })
        .await;
        etcd.start_again(leader).await;
    }
    enough.store(true, Ordering::Relaxed);
    let acknowledged = load.await.unwrap();
    assert!(acknowledged.len() > 400, "{}", acknowledged.len());
    let load = kind("load");
    let fresh = server(&etcd).await;
    until("all servers agree", || {
        let index = fresh.discover(&load).index;
        servers.iter().all(|server| server.discover(&load).index == index)
    })
    .await;
    let known: BTreeSet<String> = names(&fresh.discover(&load)).into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&known).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_loses_nothing() {
    let etcd = Etcd::start(1).await;
    let cancel = CancellationToken::new();
    let nowhere = std::path::Path::new("/nonexistent");
    let victim = open(&settings(&etcd), nowhere, cancel.clone()).await.unwrap();
    let other = server(&etcd).await;
    let enough = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(join_until(vec![victim, Arc::clone(&other)], Arc::clone(&enough)));
    until("nodes join", || other.census().nodes > 200).await;
    cancel.cancel();
    let grown = other.census().nodes + 100;
    until("nodes go on joining", || other.census().nodes > grown).await;
    enough.store(true, Ordering::Relaxed);
    let acknowledged = load.await.unwrap();
    let known: BTreeSet<String> = names(&other.discover(&kind("load"))).into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&known).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_reads_go_on_and_writes_say_why() {
    let mut etcd = Etcd::start(1).await;
    let registry = server(&etcd).await;
    registry
        .put(app(1), id("a"), announce("mongodb", "db-1"))
        .await
        .unwrap();
    let before = registry.discover(&kind("mongodb"));
    etcd.kill(0);
    let refused = registry.put(app(1), id("b"), Change::default()).await;
    assert!(
        matches!(&refused, Err(RegistryError::Unavailable(why)) if why.contains("etcd")),
        "{refused:?}"
    );
    let trouble = registry.trouble().expect("trouble");
    assert!(trouble.contains(&etcd.endpoints()[0]), "{trouble}");
    assert_eq!(registry.discover(&kind("mongodb")), before);
    // A sign of life needs no etcd.
    assert_eq!(
        registry.put(app(1), id("a"), Change::default()).await,
        Ok(Stored::Updated)
    );
    let nowhere = std::path::Path::new("/nonexistent");
    let opened = open(&settings(&etcd), nowhere, CancellationToken::new()).await;
    assert!(opened.err().expect("no registry").to_string().contains("etcd"));

    etcd.start_again(0).await;
    until("the trouble is over", || registry.trouble().is_none()).await;
    assert_eq!(
        registry.put(app(1), id("b"), Change::default()).await,
        Ok(Stored::Created)
    );
    assert_eq!(registry.census().nodes, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_left() {
    let etcd = Etcd::start(3).await;
    let (watcher, writer) = (server(&etcd).await, server(&etcd).await);
    // One after the other, the leader among them: whoever the watch is at, it moves on.
    for number in 0..3 {
        etcd.freeze(number);
        let name = format!("frozen-{number}");
        let put = poll(PATIENCE, async || {
            writer.put(app(1), id(&name), announce("x", &name)).await.ok()
        });
        put.await.expect("written");
        until("the watch moves on", || watcher.node(&id(&name)).is_some()).await;
        etcd.thaw(number);
    }
}

/// A server whose way to etcd can be cut.
async fn server_on_a_line(etcd: &Etcd) -> (Line, Arc<dyn Registry>) {
    let endpoint = etcd.endpoints()[0].parse::<url::Url>().unwrap();
    let line = Line::to(endpoint.socket_addrs(|| None).unwrap()[0]).await;
    let mut settings = settings(etcd);
    settings.endpoints = vec![format!("http://{}", line.addr).parse().unwrap()];
    let registry = server_with(&settings).await;
    (line, registry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_line_was_cut_is_caught_up_with() {
    let etcd = Etcd::start(1).await;
    let (line, remote) = server_on_a_line(&etcd).await;
    let near = server(&etcd).await;
    let quiet = Change {
        silence: Some(Duration::from_secs(2)),
        ..announce("x", "brief")
    };
    near.put(app(1), id("brief"), quiet).await.unwrap();
    near.put(app(1), id("a"), announce("x", "a")).await.unwrap();
    until("both are seen", || {
        names(&remote.discover(&kind("x"))) == ["a", "brief"]
    })
    .await;
    for compacted in [false, true] {
        line.cut();
        let host = format!("moved-{compacted}");
        near.put(app(1), id("a"), announce("x", &host)).await.unwrap();
        near.put(app(1), id(&host), announce("x", &host)).await.unwrap();
        until("brief leaves", || !near.node(&id("brief")).unwrap().present).await;
        // Behind the registry's back: the record is gone without a trace in what is left of the history.
        let delete = json!({"key": base64("/dstack-vpc/nodes/gone")});
        etcd.call("kv/deleterange", &delete).await;
        if compacted {
            let now = etcd.call("kv/range", &json!({"key": "AA=="})).await["header"]["revision"].clone();
            etcd.call("kv/compaction", &json!({"revision": now})).await;
        }
        assert!(remote.node(&id(&host)).is_none());
        line.mend();
        let (near, remote) = (&near, &remote);
        until("it has caught up", || {
            remote.discover(&kind("x")).index == near.discover(&kind("x")).index
                && remote.node(&id("brief")).is_some_and(|entry| !entry.present)
        })
        .await;
        near.put(app(1), id("gone"), announce("x", "gone")).await.unwrap();
        near.put(app(1), id("brief"), Change::default()).await.unwrap();
        until("the rest follows", || {
            remote.node(&id("gone")).is_some() && remote.node(&id("brief")).unwrap().present
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_nobody_could_hear_were_not_silent() {
    let etcd = Etcd::start(1).await;
    let lone = server(&etcd).await;
    let quiet = Change {
        silence: Some(Duration::from_secs(2)),
        ..announce("x", "brief")
    };
    lone.put(app(1), id("brief"), quiet).await.unwrap();
    until("it leaves", || !lone.node(&id("brief")).unwrap().present).await;

    // The server loses its place among the servers, as after an hour without etcd.
    let keys = json!({"key": base64("/dstack-vpc/servers/"), "range_end": base64("/dstack-vpc/servers0")});
    let found = etcd.call("kv/range", &keys).await;
    let lease = &found["kvs"][0]["lease"];
    assert!(lease.is_string(), "{found}");
    etcd.call("lease/revoke", &json!({"ID": lease})).await;
    until("it has its time again", || {
        lone.node(&id("brief")).unwrap().present
    })
    .await;
    until("and leaves again", || !lone.node(&id("brief")).unwrap().present).await;

    // A second server is no reason: the first one heard that there was nothing to hear.
    let second = server(&etcd).await;
    assert!(!second.node(&id("brief")).unwrap().present);
    lone.close().await;
    second.close().await;
    let first = server(&etcd).await;
    assert!(first.node(&id("brief")).unwrap().present);
    until("and leaves in the end", || {
        !first.node(&id("brief")).unwrap().present
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_are_used_and_not_told() {
    let etcd = Etcd::start(1).await;
    for (method, body) in [
        ("auth/user/add", json!({"name": "root", "password": "se cret"})),
        ("auth/role/add", json!({"name": "root"})),
        ("auth/user/grant", json!({"user": "root", "role": "root"})),
        ("auth/enable", json!({})),
    ] {
        etcd.call(method, &body).await;
    }
    let with = |login: &str| {
        let mut settings = settings(&etcd);
        let url = etcd.endpoints()[0].replace("http://", &format!("http://{login}"));
        settings.endpoints = vec![url.parse().unwrap()];
        settings
    };
    let nowhere = std::path::Path::new("/nonexistent");
    for wrong in ["", "root:wr%20ong@"] {
        let opened = open(&with(wrong), nowhere, CancellationToken::new()).await;
        let error = opened.err().expect("no registry").to_string();
        assert!(
            error.contains("etcd refuses") && !error.contains("ong"),
            "{error}"
        );
    }
    let registry = server_with(&with("root:se%20cret@")).await;
    assert_eq!(
        registry.put(app(1), id("a"), announce("x", "a")).await,
        Ok(Stored::Created)
    );
    assert_eq!(names(&registry.discover(&kind("x"))), ["a"]);
    registry.close().await;
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}
