//! Several servers on one etcd are one to their callers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dstack_vpc::api::ApiSettings;
use dstack_vpc::spec::Store;

use crate::common::etcd::Etcd;
use crate::common::poll;
use crate::kit::*;

fn on(etcd: &Etcd) -> impl Fn(&mut ApiSettings) {
    let endpoints: Vec<_> = etcd
        .endpoints()
        .iter()
        .map(|url| url.parse().expect("a URL"))
        .collect();
    move |settings| {
        settings.registry.store = Store::Etcd;
        settings.registry.endpoints.clone_from(&endpoints);
    }
}

async fn well(etcd: &Etcd) -> Server {
    let server = Server::with(on(etcd)).await;
    server.until(|status| status.problems.is_empty()).await;
    server
}

fn shared_key(server: &Server) -> String {
    std::fs::read_to_string(server.state().secrets().join("shared_key")).expect("the shared key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_is_told_all_know() {
    let etcd = Etcd::start(1).await;
    let (one, two) = tokio::join!(well(&etcd), well(&etcd));
    assert_eq!(shared_key(&one), shared_key(&two));
    let two = Arc::new(two);
    let waiter = tokio::spawn({
        let two = Arc::clone(&two);
        async move { two.get(OURS, "/api/discover/db?wait=25s").await }
    });
    one.announce(OURS, "n-1", "db", "100.128.0.1").await;
    let told = Instant::now();
    let news = waiter.await.expect("an answer");
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    assert_eq!((news.status, news.json()["count"].as_u64()), (200, Some(1)));
    // An index of one is an index of the other.
    let found = one.get(OURS, "/api/discover/db?wait=1s").await;
    assert_eq!(found.text(), news.text());
    assert_eq!(two.post(THEIRS, "/api/nodes/update?uuid=n-1").await.status, 403);
    // The one that wrote it is gone, and nothing with it.
    one.api.shutdown().await;
    assert_eq!(two.get(OURS, "/api/nodes").await.json()["count"], 1);
    two.announce(OURS, "n-1", "db", "100.128.0.2").await;
    let three = well(&etcd).await;
    assert_eq!(
        three.get(OURS, "/api/discover/db").await.json()["nodes"][0]["tailscale_ip"],
        "100.128.0.2"
    );
    assert_eq!(shared_key(&three), shared_key(&two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_it_says_so_and_comes_back_with_it() {
    let mut etcd = Etcd::start(1).await;
    etcd.kill(0);
    let server = Server::with(on(&etcd)).await;
    server
        .until(|status| status.problems.iter().any(|p| p.contains("etcd")))
        .await;
    assert_eq!(server.get(OURS, "/api/nodes").await.status, 503);
    assert_eq!(server.get(OURS, "/health").await.status, 200);
    etcd.start_again(0).await;
    server.until(|status| status.problems.is_empty()).await;
    server.announce(OURS, "n-1", "db", "100.128.0.1").await;

    etcd.kill(0);
    server
        .until(|status| status.problems.iter().any(|p| p.contains("etcd")))
        .await;
    // What is known is still told; what is new is refused, because nobody would know it after a restart.
    assert_eq!(server.get(OURS, "/api/discover/db").await.json()["count"], 1);
    let refused = server.post(OURS, "/api/nodes/update?uuid=n-2").await;
    assert_eq!(
        (refused.status, refused.all("retry-after").len()),
        (503, 1),
        "{}",
        refused.text()
    );
    etcd.start_again(0).await;
    let stored = poll(PATIENCE, async || {
        (server.post(OURS, "/api/nodes/update?uuid=n-2").await.status == 200).then_some(())
    });
    assert!(stored.await.is_some());
    // From one store to another, in place: the embedded one knows of nobody yet.
    server.api.update(settings()).await.expect("updated");
    assert_eq!(server.get(OURS, "/api/nodes").await.json()["count"], 0);
    let mut back = settings();
    on(&etcd)(&mut back);
    server.api.update(back).await.expect("updated");
    assert_eq!(server.get(OURS, "/api/nodes").await.json()["count"], 2);
    let start = Instant::now();
    server.api.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
