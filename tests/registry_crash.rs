//! The embedded registry in a process that is killed, or whose disk is full: nothing acknowledged is lost, and nothing
//! is half.

#[path = "registry/kit.rs"]
mod kit;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dstack_vpc::registry::{Change, RegistryError, Stored};
use kit::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

const KILLS: usize = 25;
const WRITERS: usize = 4;
/// Ids of one writer: most of its writes change a record, and some make one.
const IDS: u64 = 40;

fn child(part: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1", part])
        .env("REGISTRY_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Where a child works. `None`: it was not started by one of the tests here.
fn home_of_child() -> Option<Home> {
    std::env::var_os("REGISTRY_DIR").map(|dir| Home::at(Path::new(&dir)))
}

#[test]
fn killed_at_any_moment_it_has_what_it_acknowledged() {
    let home = Home::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // The last write of each id that was acknowledged.
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    for kill in 0..KILLS {
        let mut child = child("writes_until_killed", home.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // After its first word, at a moment of no meaning.
        let mut note = |line: String| {
            // The test harness begins the first line.
            let said = line
                .split_once("acknowledged ")
                .and_then(|(_, rest)| rest.split_once(' '));
            if let Some((id, number)) = said {
                acknowledged.insert(id.to_owned(), number.parse().unwrap());
                total += 1;
            }
            said.is_some()
        };
        while !note(lines.next().expect("it writes").unwrap()) {}
        std::thread::sleep(Duration::from_micros(fastrand::u64(..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // The last line may have been cut off with its writer.
        for line in lines.map_while(Result::ok) {
            note(line);
        }
        let registry = runtime.block_on(home.open());
        for (id, number) in &acknowledged {
            let node = registry
                .node(&kit::id(id))
                .unwrap_or_else(|| panic!("kill {kill}: {id} is lost"))
                .node;
            let stored: u64 = node.name.strip_prefix("v").unwrap().parse().unwrap();
            assert!(
                stored >= *number,
                "kill {kill}: {id} is {stored}, was acknowledged as {number}"
            );
            // What is written together is there together.
            let host = node.hostname.as_ref().unwrap().as_str();
            assert_eq!(
                host,
                format!("v{stored}.dstack.internal"),
                "kill {kill}: {id} is half"
            );
        }
        let unasked = registry.census().nodes - acknowledged.len();
        assert!(
            unasked <= WRITERS * (kill + 1),
            "{unasked} nodes that nobody was told of"
        );
        runtime.block_on(registry.close());
    }
    assert!(total > KILLS * 10, "{total}");
}

#[test]
#[ignore = "the other half of the test before"]
fn writes_until_killed() {
    let Some(home) = home_of_child() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let registry = home.open().await;
        // Goes on where the process before was killed.
        let versions = registry
            .nodes()
            .into_iter()
            .filter_map(|entry| entry.node.name.strip_prefix("v")?.parse().ok());
        let first: u64 = versions.max().unwrap_or(0) + 1;
        let writers = (0..WRITERS).map(|writer| {
            let registry = &registry;
            async move {
                for number in first.. {
                    let name = format!("w{writer}-{}", number % IDS);
                    let change = Change {
                        name: Some(format!("v{number}")),
                        ..announce("x", &format!("v{number}"))
                    };
                    registry.put(app(1), id(&name), change).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "acknowledged {name} {number}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
        futures_util::future::join_all(writers).await;
    });
}

#[test]
fn a_full_disk_is_an_error_and_leaves_the_old_record() {
    let home = Home::new();
    let child = child("fills_its_disk", home.path());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("the disk was full"),
        "{said}"
    );
}

#[test]
#[ignore = "the other half of the test before"]
fn fills_its_disk() {
    let Some(home) = home_of_child() else { return };
    // A process whose file may not grow gets a signal with the error. Threads that start from here on do not.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let registry = home.open().await;
        registry
            .put(app(1), id("old"), announce("x", "old"))
            .await
            .unwrap();
        let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let now = home.file("nodes.redb").metadata().unwrap().len();
        setrlimit(Resource::RLIMIT_FSIZE, now + (256 << 10), most).unwrap();

        let mut kept = vec!["old".to_owned()];
        let refused = loop {
            let name = format!("n{}", kept.len());
            let change = Change {
                name: Some("x".repeat(20_000)),
                ..announce("x", &name)
            };
            match registry.put(app(1), id(&name), change).await {
                Ok(stored) => assert_eq!(stored, Stored::Created),
                Err(error) => break error,
            }
            kept.push(name);
            assert!(kept.len() < 1000, "the limit has no effect");
        };
        assert!(
            matches!(&refused, RegistryError::Unavailable(why) if why.contains("nodes.redb")),
            "{refused}"
        );
        println!("the disk was full: {refused}");
        assert!(registry.trouble().is_some());
        assert_eq!(registry.census().nodes, kept.len(), "what failed is not there");
        let before = registry.node(&id("old")).unwrap().node;
        let big = Change {
            name: Some("y".repeat(200_000)),
            ..Change::default()
        };
        assert!(registry.put(app(1), id("old"), big.clone()).await.is_err());
        assert_eq!(registry.node(&id("old")).unwrap().node, before);

        // There is room again: it goes on by itself.
        setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
        let end = Instant::now() + PATIENCE;
        while registry.put(app(1), id("old"), big.clone()).await.is_err() {
            assert!(Instant::now() < end, "{:?}", registry.trouble());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(registry.trouble(), None);
        registry.close().await;
        let registry = home.open().await;
        for name in &kept {
            assert!(registry.node(&id(name)).is_some(), "{name} is lost");
        }
        assert_eq!(registry.node(&id("old")).unwrap().node.name.len(), 200_000);
    });
}
