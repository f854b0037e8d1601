//! The registry at 1,000, 100,000 and 1,000,000 nodes, in both stores: `make bench-registry`, or
//! `cargo bench --bench registry -- [embedded|etcd] [NODES...]`. Prints a table for people.
//!
//! Each measurement is a process of its own, so that its memory is that of one registry.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::etcd::Etcd;
use common::process::resident;
use dstack_vpc::names::{AppId, NodeId, NodeType};
use dstack_vpc::registry::{Change, Node, Registry, RegistrySettings, open};
use dstack_vpc::spec::Store;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Nodes of one type; the others have types of their own.
const OF_A_TYPE: usize = 100;
const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
const DISCOVERIES: usize = 10_000;
const UPDATES: usize = 300;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let [measure, nodes, place] = &args[..]
        && measure == "measure"
    {
        let measured = runtime.block_on(measure_one(nodes.parse().unwrap(), place));
        println!("{}", serde_json::to_string(&measured).unwrap());
        return;
    }
    let sizes: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    let wanted = |store: &str| {
        args.iter()
            .all(|arg| arg.parse::<usize>().is_ok() || arg == store)
    };
    println!(
        "| store | nodes | start | memory (peak) | etcd's own | discover {OF_A_TYPE} | sign of life | update | 1,000 join |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for nodes in sizes.iter().copied().filter(|_| wanted("embedded")) {
        let dir = tempfile::tempdir().unwrap();
        eprintln!("embedded: filling {nodes} nodes in");
        runtime.block_on(fill_embedded(dir.path(), nodes));
        report(
            "embedded",
            nodes,
            &measure_in_child(nodes, &dir.path().to_string_lossy()),
            None,
        );
    }
    for nodes in sizes.iter().copied().filter(|_| wanted("etcd")) {
        let etcd = runtime.block_on(Etcd::start(1));
        eprintln!("etcd: filling {nodes} nodes in");
        runtime.block_on(fill_etcd(&etcd, nodes));
        let measured = measure_in_child(nodes, &etcd.endpoints()[0]);
        report("etcd", nodes, &measured, Some(etcd.resident(0)));
    }
}

#[derive(Serialize, Deserialize)]
struct Measured {
    start: Duration,
    /// KiB
    memory: u64,
    peak: u64,
    discover: Times,
    heartbeat: Times,
    update: Times,
    thousand: Duration,
}

#[derive(Serialize, Deserialize)]
struct Times {
    median: Duration,
    p99: Duration,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        Self {
            median: all[all.len() / 2],
            p99: all[all.len() * 99 / 100],
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (p99 {})", short(self.median), short(self.p99))
    }
}

fn short(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..1e3 => format!("{micros:.1} µs"),
        1e3..1e6 => format!("{:.1} ms", micros / 1e3),
        _ => format!("{:.1} s", micros / 1e6),
    }
}

fn report(store: &str, nodes: usize, measured: &Measured, of_etcd: Option<u64>) {
    let Measured {
        start,
        memory,
        peak,
        discover,
        heartbeat,
        update,
        thousand,
    } = measured;
    let mib = |kib: u64| format!("{} MiB", kib / 1024);
    println!(
        "| {store} | {nodes} | {} | {} ({}) | {} | {discover} | {heartbeat} | {update} | {} |",
        short(*start),
        mib(*memory),
        mib(*peak),
        of_etcd.map_or("–".to_owned(), mib),
        short(*thousand),
    );
}

fn settings(place: &str) -> RegistrySettings {
    let etcd = place.starts_with("http");
    RegistrySettings {
        store: if etcd { Store::Etcd } else { Store::Embedded },
        endpoints: etcd.then(|| place.parse().unwrap()).into_iter().collect(),
        silence: Duration::from_secs(24 * 3600),
        forget_after: Duration::from_secs(30 * 24 * 3600),
    }
}

async fn open_at(place: &str) -> Arc<dyn Registry> {
    let opened = open(&settings(place), &PathBuf::from(place), CancellationToken::new()).await;
    opened.unwrap_or_else(|e| panic!("{e}"))
}

fn measure_in_child(nodes: usize, place: &str) -> Measured {
    eprintln!("measuring");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["measure", &nodes.to_string(), place])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    serde_json::from_slice(&child.stdout).expect("a measurement")
}

async fn measure_one(nodes: usize, place: &str) -> Measured {
    let began = Instant::now();
    let registry = open_at(place).await;
    let start = began.elapsed();
    let memory = resident(std::process::id() as i32);
    let peak = peak();
    assert_eq!(registry.census().nodes, nodes);
    assert_eq!(registry.census().present, nodes);

    let mut discover = Vec::with_capacity(DISCOVERIES);
    for _ in 0..DISCOVERIES {
        let node_type = type_of(fastrand::usize(..nodes));
        let began = Instant::now();
        let found = registry.discover(&node_type).nodes.len();
        discover.push(began.elapsed());
        assert_eq!(found, OF_A_TYPE);
    }
    let (mut heartbeats, mut updates) = (Vec::new(), Vec::new());
    for round in 0..UPDATES {
        let number = fastrand::usize(..nodes);
        let changed = Change {
            hostname: Some(format!("moved-{round}.dstack.internal").parse().unwrap()),
            ..Change::default()
        };
        // The first sign of life after a start is etcd's business too; from then on it is ours.
        registry
            .put(owner(), id_of(number), Change::default())
            .await
            .unwrap();
        for (change, times) in [(Change::default(), &mut heartbeats), (changed, &mut updates)] {
            let began = Instant::now();
            registry.put(owner(), id_of(number), change).await.unwrap();
            times.push(began.elapsed());
        }
    }
    let began = Instant::now();
    let joins = (nodes..nodes + 1000).map(|number| registry.put(owner(), id_of(number), change_of(number)));
    assert!(join_all(joins).await.iter().all(Result::is_ok));
    let thousand = began.elapsed();
    registry.close().await;
    Measured {
        start,
        memory,
        peak,
        discover: Times::of(discover),
        heartbeat: Times::of(heartbeats),
        update: Times::of(updates),
        thousand,
    }
}

/// KiB
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

async fn fill_embedded(dir: &Path, nodes: usize) {
    let registry = open_at(&dir.to_string_lossy()).await;
    for chunk in (0..nodes).collect::<Vec<_>>().chunks(4000) {
        let joins = chunk
            .iter()
            .map(|number| registry.put(owner(), id_of(*number), change_of(*number)));
        assert!(join_all(joins).await.iter().all(Result::is_ok));
    }
    registry.close().await;
}

/// As the registry would write it, only quicker: many records in a transaction.
async fn fill_etcd(etcd: &Etcd, nodes: usize) {
    let lease = etcd.call("lease/grant", &json!({"TTL": 36 * 3600})).await["ID"].clone();
    let put = |key: String, value: Vec<u8>, lease: &serde_json::Value| {
        let (key, value) = (BASE64_STANDARD.encode(key), BASE64_STANDARD.encode(value));
        json!({"request_put": {"key": key, "value": value, "lease": lease}})
    };
    let numbers: Vec<_> = (0..nodes).collect();
    for chunk in numbers.chunks(64 * 8) {
        let txns = chunk.chunks(64).map(|some| {
            let steps = some.iter().flat_map(|number| {
                let node = node(*number);
                [
                    put(
                        format!("/dstack-vpc/nodes/{}", node.id),
                        serde_json::to_vec(&node).unwrap(),
                        &json!(0),
                    ),
                    put(format!("/dstack-vpc/alive/{}", node.id), Vec::new(), &lease),
                ]
            });
            let txn = json!({"success": steps.collect::<Vec<_>>()});
            async move { etcd.call("kv/txn", &txn).await }
        });
        join_all(txns).await;
    }
}

fn owner() -> AppId {
    AppId::from_bytes([7; 20])
}

/// Like an instance id: 40 hex digits, in no order.
fn id_of(number: usize) -> NodeId {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{spread:016x}{number:024x}").parse().unwrap()
}

fn type_of(number: usize) -> NodeType {
    format!("type-{}", number / OF_A_TYPE).parse().unwrap()
}

fn change_of(number: usize) -> Change {
    let node = node(number);
    Change {
        name: Some(node.name),
        node_type: node.node_type,
        ip: node.ip,
        hostname: node.hostname,
        silence: None,
        join_key: None,
    }
}

fn node(number: usize) -> Node {
    let now = Timestamp::now();
    Node {
        id: id_of(number),
        owner: owner(),
        name: format!("node-{number}"),
        node_type: Some(type_of(number)),
        ip: Some((0x6480_0000 + number as u32).into()),
        hostname: Some(format!("node-{number}.dstack.internal").parse().unwrap()),
        registered: now,
        typed: now,
        silence: None,
        join_keys: vec![number as u64],
    }
}
