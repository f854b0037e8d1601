//! The embedded registry through its trait: what is kept, who may change it, what is found, and who leaves when.

#[path = "registry/kit.rs"]
mod kit;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dstack_vpc::registry::{Change, Listing, OpenError, RegistryError, Stored};
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

#[tokio::test]
async fn silent_nodes_leave_return_and_are_forgotten() {
    let home = Home::patience(Duration::from_millis(400), Duration::from_secs(3));
    let registry = home.open().await;
    let x = kind("x");
    let silence = |seconds| Change {
        silence: Some(Duration::from_secs(seconds)),
        ..announce("x", "host")
    };
    registry
        .put(app(1), id("brief"), announce("x", "brief"))
        .await
        .unwrap();
    registry.put(app(1), id("patient"), silence(3600)).await.unwrap();
    registry.put(app(1), id("for-ever"), silence(0)).await.unwrap();
    let all = registry.discover(&x);
    assert_eq!(names(&all), ["brief", "for-ever", "patient"]);
    within("it leaves", registry.changed(&x, all.index)).await;
    let without = registry.discover(&x);
    assert_eq!(names(&without), ["for-ever", "patient"]);
    assert!(!registry.node(&id("brief")).unwrap().present);
    assert_eq!((registry.census().nodes, registry.census().present), (3, 2));

    // A sign of life brings it back to where it was.
    assert_eq!(
        registry.put(app(1), id("brief"), Change::default()).await,
        Ok(Stored::Updated)
    );
    assert_eq!(
        registry.discover(&x),
        Listing {
            nodes: registry.discover(&x).nodes,
            ..all
        }
    );

    // It is forgotten, and so are those that may be silent for longer than that.
    until("all are forgotten", || registry.census().nodes == 0).await;
    assert_eq!(registry.discover(&x).nodes, []);
    registry
        .put(app(2), id("brief"), Change::default())
        .await
        .unwrap();
    registry.close().await;
    assert_eq!(
        home.open().await.nodes().len(),
        1,
        "what is forgotten is off the disk"
    );
}

#[tokio::test]
async fn of_type_etcd_only_the_newest_is_discovered() {
    let home = Home::patience(Duration::from_millis(500), Duration::ZERO);
    let registry = home.open().await;
    let etcd = kind("etcd");
    for (app_number, name) in [(1, "old"), (2, "new")] {
        registry
            .put(app(app_number), id(name), announce("etcd", name))
            .await
            .unwrap();
        assert_eq!(names(&registry.discover(&etcd)), [name]);
    }
    // The older one lives on, and stays what it is: nobody's record is taken away.
    registry
        .put(app(1), id("old"), announce("etcd", "old-again"))
        .await
        .unwrap();
    assert_eq!(names(&registry.discover(&etcd)), ["new"]);
    assert_eq!(registry.nodes().len(), 2);
    let index = registry.discover(&etcd).index;
    let keep_old_alive = async {
        loop {
            registry.put(app(1), id("old"), Change::default()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = keep_old_alive => {}
        () = within("the newest leaves", registry.changed(&etcd, index)) => {}
    }
    assert_eq!(names(&registry.discover(&etcd)), ["old"]);
}

#[tokio::test]
async fn waiting_ends_with_a_change_of_that_type_and_with_no_other() {
    let home = Home::new();
    let registry = home.open().await;
    let (x, nobody) = (kind("x"), kind("nobody"));
    let index = registry.discover(&x).index;
    assert_ne!(index, 0);
    let mut waiting = std::pin::pin!(registry.changed(&x, index));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    registry
        .put(app(1), id("other"), announce("y", "other"))
        .await
        .unwrap();
    registry
        .put(
            app(1),
            id("unnamed"),
            Change {
                node_type: Some(x.clone()),
                ..Change::default()
            },
        )
        .await
        .unwrap();
    assert!(
        futures_util::poll!(&mut waiting).is_pending(),
        "nothing of type x can be discovered yet"
    );
    registry.put(app(1), id("a"), announce("x", "a")).await.unwrap();
    within("it is told", waiting).await;

    // Everything that discovery shows counts: name, address, leaving for another type.
    let moved = Change {
        ip: Some([100, 128, 0, 8].into()),
        ..Change::default()
    };
    let elsewhere = Change {
        node_type: Some(kind("y")),
        ..Change::default()
    };
    for change in [announce("x", "b"), moved, elsewhere] {
        let index = registry.discover(&x).index;
        let mut waiting = std::pin::pin!(registry.changed(&x, index));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        registry.put(app(1), id("a"), change).await.unwrap();
        within("it is told", waiting).await;
    }
    assert_eq!(registry.discover(&x).index, registry.discover(&nobody).index);

    // Many at once, and some of them go away.
    let index = registry.discover(&nobody).index;
    let mut many: Vec<_> = (0..100).map(|_| registry.changed(&nobody, index)).collect();
    for waiting in &mut many {
        assert!(futures_util::poll!(waiting).is_pending());
    }
    many.truncate(50);
    registry
        .put(app(1), id("n"), announce("nobody", "n"))
        .await
        .unwrap();
    within("all are told", futures_util::future::join_all(many)).await;
}

#[tokio::test]
async fn a_thousand_that_join_at_once_are_written_together() {
    let home = Home::new();
    let registry = home.open().await;
    let joins =
        (0..1000).map(|n| registry.put(app(1), id(&format!("n{n}")), announce("x", &format!("n{n}"))));
    let outcomes = within("they join", futures_util::future::join_all(joins)).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Stored::Created)));
    assert_eq!(registry.discover(&kind("x")).nodes.len(), 1000);
}

#[tokio::test]
async fn a_file_that_is_taken_away_while_in_use_is_noticed_and_taken_back() {
    let home = Home::new();
    let registry = home.open().await;
    registry.put(app(1), id("a"), announce("x", "a")).await.unwrap();
    let (file, away) = (home.file("nodes.redb"), home.file("away"));
    std::fs::rename(&file, &away).unwrap();
    let refused = registry.put(app(1), id("b"), Change::default()).await;
    assert!(
        matches!(&refused, Err(RegistryError::Unavailable(why)) if why.contains("nodes.redb")),
        "{refused:?}"
    );
    assert!(registry.trouble().unwrap().contains("nodes.redb"));
    assert_eq!(names(&registry.discover(&kind("x"))), ["a"], "reads go on");
    assert_eq!(
        registry.put(app(1), id("a"), Change::default()).await,
        Ok(Stored::Updated)
    );

    std::fs::rename(&away, &file).unwrap();
    let mut outcome = refused;
    let end = Instant::now() + PATIENCE;
    while outcome.is_err() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
        outcome = registry.put(app(1), id("b"), Change::default()).await;
    }
    assert_eq!(outcome, Ok(Stored::Created));
    assert_eq!(registry.trouble(), None);

    // Cut while in use: what is written then would be lost.
    let length = file.metadata().unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    let refused = registry.put(app(1), id("c"), Change::default()).await;
    assert!(
        matches!(&refused, Err(RegistryError::Unavailable(_))),
        "{refused:?}"
    );
    assert_eq!(registry.census().nodes, 2);
}

#[tokio::test]
async fn the_secret_is_made_once_and_never_shown() {
    let home = Home::new();
    let registry = home.open().await;
    let secret = registry.shared_secret(vec![7; 64]).await.unwrap();
    assert_eq!(secret, [7; 64]);
    assert_eq!(registry.shared_secret(vec![8; 64]).await.unwrap(), secret);
    registry.close().await;
    assert_eq!(
        home.open().await.shared_secret(vec![9; 64]).await.unwrap(),
        secret
    );
}
