//! Any sequence of what can happen to a registry, in both stores, against the simplest thing that could be right.

#[path = "common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "registry/kit.rs"]
mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::etcd::Etcd;
use dstack_vpc::registry::{Change, Node, Registry, RegistryError, RegistrySettings, Stored, open};
use dstack_vpc::spec::Store;
use kit::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
enum Step {
    Put {
        app: u8,
        id: &'static str,
        change: Change,
    },
    /// The server goes and comes; with a goodbye or without one.
    Restart { goodbye: bool },
}

const IDS: [&str; 4] = ["a", "b", "c", "d"];
const TYPES: [&str; 3] = ["x", "y", "etcd"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (
        of(select(&["n1", "n2"][..])),
        of(select(&TYPES[..])),
        of(0..3u8),
        of(0..3u8),
        of(0..3u64),
    );
    let change = change.prop_map(|(name, node_type, ip, host, silence)| Change {
        name: name.map(str::to_owned),
        node_type: node_type.map(kind),
        ip: ip.map(|last| [100, 128, 0, last].into()),
        hostname: host.map(|number| format!("h{number}.dstack.internal").parse().unwrap()),
        // Long enough for nothing to leave meanwhile, or for ever.
        silence: silence.map(|hours| Duration::from_secs(hours * 3600)),
        join_key: None,
    });
    let put = (1..3u8, select(&IDS[..]), change);
    let step = prop_oneof![
        12 => put.prop_map(|(app, id, change)| Step::Put { app, id, change }),
        1 => any::<bool>().prop_map(|goodbye| Step::Restart { goodbye }),
    ];
    vec(step, 1..40)
}

/// The simplest thing that could be right.
#[derive(Default)]
struct Model(BTreeMap<String, Node>);

impl Model {
    /// Times are the registry's own: only how they relate is known.
    fn put(&mut self, step: &Step, outcome: &Result<Stored, RegistryError>, now: Option<&Node>) {
        let Step::Put {
            app: owner,
            id: name,
            change,
        } = step
        else {
            return;
        };
        let before = self.0.get(*name);
        if before.is_some_and(|node| node.owner != app(*owner)) {
            assert_eq!(outcome, &Err(RegistryError::NotYours(id(name))));
            assert_eq!(before, now);
            return;
        }
        let expected = if before.is_some() {
            Stored::Updated
        } else {
            Stored::Created
        };
        assert_eq!(outcome, &Ok(expected));
        let now = now.expect("it is there at once");
        let kept = |field: fn(&Node) -> Option<String>| before.and_then(field);
        assert_eq!(now.owner, app(*owner));
        let name_before = before.map_or(format!("node-{name}"), |node| node.name.clone());
        assert_eq!(now.name, change.name.clone().unwrap_or(name_before));
        let type_before = kept(|node| Some(node.node_type.as_ref()?.to_string()));
        let type_wanted = change
            .node_type
            .as_ref()
            .map(ToString::to_string)
            .or(type_before.clone());
        assert_eq!(now.node_type.as_ref().map(ToString::to_string), type_wanted);
        assert_eq!(now.ip, change.ip.or(before.and_then(|node| node.ip)));
        assert_eq!(
            now.hostname,
            change
                .hostname
                .clone()
                .or(before.and_then(|node| node.hostname.clone()))
        );
        assert_eq!(
            now.silence,
            change.silence.or(before.and_then(|node| node.silence))
        );
        if let Some(before) = before {
            assert_eq!(now.registered, before.registered);
            assert_eq!(now.typed > before.typed, type_wanted != type_before);
        }
        self.0.insert((*name).to_owned(), now.clone());
    }

    fn discovered(&self, node_type: &str) -> Vec<&Node> {
        let of_type = self.0.values().filter(|node| {
            node.hostname.is_some()
                && node
                    .node_type
                    .as_ref()
                    .is_some_and(|name| name.as_str() == node_type)
        });
        match node_type {
            "etcd" => of_type
                .max_by_key(|node| (node.typed, node.id.clone()))
                .into_iter()
                .collect(),
            _ => of_type.collect(),
        }
    }
}

/// What a caller of the API gets to see.
type Seen = Vec<(String, String, Option<std::net::Ipv4Addr>)>;

async fn try_steps(settings: &RegistrySettings, dir: &std::path::Path, steps: Vec<Step>) {
    let opened = async || {
        open(settings, dir, CancellationToken::new())
            .await
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let mut registry: Arc<dyn Registry> = opened().await;
    let mut model = Model::default();
    let mut indices: BTreeMap<u64, Seen> = BTreeMap::new();
    for step in &steps {
        match step {
            Step::Restart { goodbye } => {
                if *goodbye {
                    registry.close().await;
                }
                drop(registry);
                registry = within("it opens again", async {
                    loop {
                        // Without a goodbye the file is let go of a moment later.
                        match open(settings, dir, CancellationToken::new()).await {
                            Ok(registry) => break registry,
                            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                        }
                    }
                })
                .await;
            }
            Step::Put {
                app: owner,
                id: name,
                change,
            } => {
                let outcome = registry.put(app(*owner), id(name), change.clone()).await;
                let now = registry.node(&id(name)).map(|entry| entry.node);
                model.put(step, &outcome, now.as_deref());
            }
        }
        let all: Vec<Node> = registry
            .nodes()
            .iter()
            .map(|entry| Node::clone(&entry.node))
            .collect();
        assert_eq!(
            all,
            model.0.values().cloned().collect::<Vec<_>>(),
            "after {step:?}"
        );
        assert_eq!(registry.census().present, all.len());
        for name in TYPES {
            let listing = registry.discover(&kind(name));
            let found: Vec<&Node> = listing.nodes.iter().map(|entry| &*entry.node).collect();
            assert_eq!(found, model.discovered(name), "type {name} after {step:?}");
            let seen = found.iter().map(|node| {
                (
                    node.id.to_string(),
                    node.hostname.as_ref().unwrap().to_string(),
                    node.ip,
                )
            });
            let seen: Seen = seen.collect();
            // One index for one listing, before and after a restart, and the other way round.
            assert_eq!(
                indices.entry(listing.index).or_insert_with(|| seen.clone()),
                &seen
            );
            let same = indices.values().filter(|other| **other == seen).count();
            assert_eq!(same, 1, "type {name} after {step:?}");
        }
    }
    registry.close().await;
}

fn settings(store: Store, endpoints: Vec<String>) -> RegistrySettings {
    RegistrySettings {
        store,
        endpoints: endpoints.iter().map(|url| url.parse().unwrap()).collect(),
        silence: Duration::from_secs(3600),
        forget_after: Duration::from_secs(7200),
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn the_embedded_registry_is_right() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runner(100).run(&steps(), |steps| {
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(try_steps(
            &settings(Store::Embedded, Vec::new()),
            dir.path(),
            steps,
        ));
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_registry_in_etcd_is_right() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let etcd = runtime.block_on(Etcd::start(1));
    let settings = settings(Store::Etcd, etcd.endpoints());
    let outcome = runner(40).run(&steps(), |steps| {
        runtime.block_on(async {
            // Everything goes, so that each case has an etcd of its own.
            etcd.call("kv/deleterange", &json!({"key": "AA==", "range_end": "AA=="}))
                .await;
            try_steps(&settings, std::path::Path::new("/nonexistent"), steps).await;
        });
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}
