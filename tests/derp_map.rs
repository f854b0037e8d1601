//! The keeper of the public relays, against a stand-in for the place where they are published.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use dstack_vpc::facts::{Observed, Topic, Watcher};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{Derp, Spec};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

const PATIENCE: Duration = Duration::from_secs(20);

const MAP: &str = r#"{"Regions": {"1": {"RegionID": 1, "RegionCode": "nyc", "RegionName": "New York City",
    "Nodes": [{"Name": "1a", "RegionID": 1, "HostName": "derp1.example.com"}]}}}"#;

/// Publishes what it is given, and counts who asks.
struct Publisher {
    url: Url,
    answer: watch::Sender<(StatusCode, String)>,
    asked: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Publisher {
    async fn start(answer: &str) -> Self {
        let answer = watch::Sender::new((StatusCode::OK, answer.to_owned()));
        let asked = Arc::new(AtomicUsize::new(0));
        type Shared = (watch::Receiver<(StatusCode, String)>, Arc<AtomicUsize>);
        let handler = async |State((answer, asked)): State<Shared>| {
            asked.fetch_add(1, Ordering::Relaxed);
            answer.borrow().clone()
        };
        let router = Router::new()
            .route("/derpmap/{name}", axum::routing::get(handler))
            .with_state((answer.subscribe(), asked.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/derpmap/default?v=1", listener.local_addr().unwrap());
        Self {
            url: url.parse().unwrap(),
            answer,
            asked,
            server: tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }),
        }
    }

    fn publish(&self, status: StatusCode, answer: &str) {
        self.answer.send_replace((status, answer.to_owned()));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Watched {
    watcher: Watcher,
    spec: watch::Sender<Arc<Spec>>,
}

impl Watched {
    async fn start(home: &TempDir, spec: &Spec) -> Self {
        let (sender, receiver) = watch::channel(Arc::new(spec.clone()));
        let state = StateDir::new(home.path());
        Self {
            watcher: Watcher::start(receiver, state, CancellationToken::new()).await,
            spec: sender,
        }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Observed) -> bool) {
        let mut observed = self.watcher.observed.clone();
        let result = tokio::time::timeout(PATIENCE, observed.wait_for(is_so)).await;
        assert!(
            result.is_ok(),
            "never: {what}; now {:#?}",
            *self.watcher.observed.borrow()
        );
    }
}

/// A server that nothing else is known of.
fn server(home: &TempDir, publisher: &Publisher) -> Spec {
    let mut spec = dstack_vpc::spec::load(None, &BTreeMap::new()).unwrap().spec;
    spec.role.server = true;
    spec.dstack.host_shared_dir = home.path().to_owned();
    for program in [
        &mut spec.nginx.program,
        &mut spec.headscale.program,
        &mut spec.supervisor.program,
    ] {
        *program = "no-such-program".into();
    }
    spec.vpn.derp_map_url = publisher.url.clone();
    spec
}

fn has_map(observed: &Observed) -> bool {
    observed.facts.derp_map.is_some()
}

fn problem(observed: &Observed) -> Option<&str> {
    observed
        .problem(Topic::Relays)
        .map(|problem| problem.message.as_str())
}

#[tokio::test]
async fn a_map_is_fetched_once_and_remembered() {
    let (home, publisher) = (tempfile::tempdir().unwrap(), Publisher::start(MAP).await);
    let spec = server(&home, &publisher);
    let watched = Watched::start(&home, &spec).await;
    watched.until("the map", has_map).await;
    watched.watcher.join().await;
    assert_eq!(publisher.asked(), 1);

    // The next life finds it, before and without asking; another place is asked at once.
    let (other, one) = (
        Publisher::start(&MAP.replace("nyc", "lon")).await,
        publisher.asked(),
    );
    let watched = Watched::start(&home, &spec).await;
    assert!(has_map(&watched.watcher.observed.borrow()));
    let yaml = |observed: &Observed| observed.facts.derp_map.as_ref().unwrap().value.to_yaml();
    assert!(yaml(&watched.watcher.observed.borrow()).contains("\"nyc\""));
    watched.spec.send_replace(Arc::new(server(&home, &other)));
    watched
        .until("the other map", |observed| yaml(observed).contains("\"lon\""))
        .await;
    assert_eq!((publisher.asked(), other.asked()), (one, 1));
    watched.watcher.join().await;

    // A memory that was damaged is none.
    let memory = StateDir::new(home.path()).run().join("derp_map.json");
    for junk in ["", "{}", "{\"url\":\"x\",\"at\":1,\"map\":{\"Regions\":{}}}"] {
        std::fs::write(&memory, junk).unwrap();
        let asked = publisher.asked();
        let watched = Watched::start(&home, &spec).await;
        watched.until("the map again", has_map).await;
        watched.watcher.join().await;
        assert_eq!(publisher.asked(), asked + 1, "{junk}");
    }
}

#[tokio::test]
async fn without_a_map_there_is_trouble_only_for_those_who_have_no_other_relays() {
    let (home, publisher) = (tempfile::tempdir().unwrap(), Publisher::start("<html>").await);
    let spec = server(&home, &publisher);
    let watched = Watched::start(&home, &spec).await;
    let mut public = spec.clone();
    public.vpn.derp = Derp::Public;
    watched.spec.send_replace(Arc::new(public));
    for (status, answer, words) in [
        (StatusCode::OK, "<html>", "the answer is no map of relays"),
        (StatusCode::NOT_FOUND, "gone", "answered with status 404"),
        (StatusCode::OK, "{\"Regions\":{}}", "there is no relay in it"),
    ] {
        publisher.publish(status, answer);
        let is_told = |observed: &Observed| problem(observed).is_some_and(|told| told.contains(words));
        watched.until(words, is_told).await;
    }
    // A server with a relay of its own takes no harm.
    watched.spec.send_replace(Arc::new(spec));
    watched.watcher.rescan();
    watched
        .until("no trouble", |observed| problem(observed).is_none())
        .await;
    assert!(!has_map(&watched.watcher.observed.borrow()));

    publisher.publish(StatusCode::OK, MAP);
    watched.watcher.rescan();
    watched.until("the map", has_map).await;
}

#[tokio::test]
async fn nobody_is_asked_for_a_map_that_is_not_used() {
    let (home, publisher) = (tempfile::tempdir().unwrap(), Publisher::start(MAP).await);
    let mut spec = server(&home, &publisher);
    spec.role.server = false;
    let watched = Watched::start(&home, &spec).await;
    let mut embedded = server(&home, &publisher);
    embedded.vpn.derp = Derp::Embedded;
    watched.spec.send_replace(Arc::new(embedded));
    let mut file = server(&home, &publisher);
    file.vpn.derp = Derp::File("/etc/derp.yaml".into());
    watched.spec.send_replace(Arc::new(file));
    // What was not asked until it was wanted was not asked before.
    watched.spec.send_replace(Arc::new(server(&home, &publisher)));
    watched.until("the map", has_map).await;
    assert_eq!(publisher.asked(), 1);
}
