//! The embedded registry through its trait: what is kept, who may change it, what is found, and who leaves when.

#[path = "registry/kit.rs"]
mod kit;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use dstack_vpc::registry::{Change, OpenError, RegistryError, Stored};
use kit::*;

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let home = Home::new();
    let registry = home.open().await;
    let full = Change {
        name: Some("db-1".to_owned()),
        silence: Some(Duration::from_secs(77)),
        ..announce("mongodb", "db-1")
    };
    assert_eq!(registry.put(app(1), id("a"), full).await, Ok(Stored::Created));
    assert_eq!(
        registry.put(app(1), id("b"), Change::default()).await,
        Ok(Stored::Created)
    );
    let later = announce("postgres", "db-2");
    assert_eq!(registry.put(app(1), id("b"), later).await, Ok(Stored::Updated));
    let (before, index) = (registry.nodes(), registry.discover(&kind("mongodb")).index);
    assert_eq!(before[0].node.name, "db-1");
    assert_eq!(before[1].node.name, "node-b");
    registry.close().await;
    assert_eq!(
        registry.put(app(1), id("c"), Change::default()).await,
        Err(RegistryError::Unavailable("the registry is closed".to_owned()))
    );

    let registry = home.open().await;
    let nodes =
        |entries: &[dstack_vpc::registry::Entry]| entries.iter().map(|e| e.node.clone()).collect::<Vec<_>>();
    assert_eq!(nodes(&registry.nodes()), nodes(&before));
    assert_eq!(registry.discover(&kind("mongodb")).index, index);
    assert!(registry.nodes().iter().all(|entry| entry.present));
    let mode = |name: &str| home.file(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("nodes.redb"), 0o600);
}

#[tokio::test]
async fn a_record_belongs_to_the_app_that_made_it() {
    let home = Home::new();
    let registry = home.open().await;
    registry
        .put(app(1), id("a"), announce("mongodb", "db-1"))
        .await
        .unwrap();
    for change in [
        Change::default(),
        announce("mongodb", "db-1"),
        announce("x", "evil"),
    ] {
        assert_eq!(
            registry.put(app(2), id("a"), change).await,
            Err(RegistryError::NotYours(id("a")))
        );
    }
    assert_eq!(names(&registry.discover(&kind("mongodb"))), ["a"]);

    // Two at once: exactly one wins, and all its later calls do.
    for round in 0..50 {
        let id = id(&format!("race-{round}"));
        let put = |owner| registry.put(app(owner), id.clone(), Change::default());
        let outcomes = tokio::join!(put(1), put(2), put(3));
        let outcomes = [outcomes.0, outcomes.1, outcomes.2];
        let winners = outcomes.iter().filter(|o| **o == Ok(Stored::Created)).count();
        let losers = outcomes
            .iter()
            .filter(|o| **o == Err(RegistryError::NotYours(id.clone())))
            .count();
        assert_eq!((winners, losers), (1, 2), "{outcomes:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_whole_is_refused_and_left_alone() {
    let home = Home::new();
    let registry = home.open().await;
    for n in 0..2000 {
        let put = registry.put(app(1), id(&format!("n{n}")), Change::default());
        // One write in a hundred is waited for: the rest goes along.
        if n % 100 == 99 {
            put.await.unwrap();
        } else {
            let _ = futures_util::poll!(std::pin::pin!(put));
        }
    }
    registry.close().await;
    let whole = std::fs::read(home.file("nodes.redb")).unwrap();
    assert!(whole.len() > 100_000, "{}", whole.len());

    let mut foreign = whole.clone();
    foreign[..16].copy_from_slice(b"SQLite format 3\0");
    let mut flipped = whole.clone();
    for byte in flipped.iter_mut().skip(8192).step_by(4096) {
        *byte ^= 0x55;
    }
    let cuts = [
        0,
        1,
        100,
        4096,
        8192,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ];
    let mut broken: Vec<Vec<u8>> = cuts.map(|cut| whole[..cut].to_vec()).into();
    broken.extend([foreign, flipped, vec![0; whole.len()], b"hello\n".to_vec()]);
    for content in broken {
        std::fs::write(home.file("nodes.redb"), &content).unwrap();
        let error = home.try_open().await.err().expect("refused");
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("Put a backup in its place"), "{message}");
        assert!(message.contains("nodes.redb.exists"), "{message}");
        assert!(
            std::fs::read(home.file("nodes.redb")).unwrap() == content,
            "it was touched: {message}"
        );
    }

    std::fs::remove_file(home.file("nodes.redb")).unwrap();
    let error = home.try_open().await.err().expect("refused");
    assert!(matches!(error, OpenError::Missing { .. }), "{error:?}");
    assert!(!home.file("nodes.redb").exists());

    std::fs::write(home.file("nodes.redb"), &whole).unwrap();
    let registry = home.open().await;
    let in_use = home.try_open().await.err().expect("refused");
    assert!(matches!(in_use, OpenError::InUse { .. }), "{in_use:?}");
    assert!(registry.census().nodes >= 20);
    registry.close().await;
    std::fs::remove_file(home.file("nodes.redb")).unwrap();
    std::fs::remove_file(home.file("nodes.redb.exists")).unwrap();
    assert_eq!(home.open().await.census().nodes, 0);
}
