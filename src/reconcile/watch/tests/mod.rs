//! Each way a file changes in the wild, heard by events alone, found by looks alone, and by both.

mod mounts;
mod ways;

use super::*;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Instant;

use tempfile::TempDir;
use tokio::time::{interval_at, timeout};

use ways::{Before, WAYS, Way, config_map, config_map_updated, halves, hard_link, nothing, sed, swap};

/// Enough for a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(60);
/// As the daemon waits for a burst to end.
const QUIET: Duration = Duration::from_millis(50);
const BURST: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Events,
    Looks,
    Both,
}

/// A folder `conf` with a `vpc.toml`, and one who follows it.
struct Wild {
    home: TempDir,
    watch: Watch,
    /// What was read each time: `None`, no file.
    reads: Vec<Option<String>>,
}

impl Wild {
    fn new(by: By) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("conf")).unwrap();
        fs::write(home.path().join("conf/vpc.toml"), "old").unwrap();
        Self::of(home, by)
    }

    fn of(home: TempDir, by: By) -> Self {
        let mut watch = match by {
            By::Looks => Watch::hearing(Events::deaf()),
            By::Events | By::Both => Watch::new(),
        };
        if by == By::Events {
            let never = Duration::from_secs(1_000_000);
            watch.tick = interval_at(tokio::time::Instant::now() + never, never);
        }
        let mut wild = Self {
            home,
            watch,
            reads: Vec::new(),
        };
        wild.read();
        wild.reads.clear();
        wild
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("conf/vpc.toml")
    }

    fn read(&mut self) {
        let file = self.file();
        self.watch
            .look(Some(&file), Some(&self.home.path().join("conf/templates")));
        self.reads.push(fs::read_to_string(&file).ok());
        self.watch.follow(Made::default());
    }

    async fn noticed(&mut self) -> Option<Ahead> {
        timeout(LIMIT, self.watch.changed()).await.ok()
    }

    /// Follows as the daemon does until it has read this.
    async fn reads(&mut self, last: Option<&str>) {
        let end = Instant::now() + LIMIT;
        while self.reads.last().map(Option::as_deref) != Some(last) {
            let noticed = self.noticed().await;
            let mut ahead = noticed.unwrap_or_else(|| panic!("{last:?} was never seen: {:?}", self.reads));
            let first = Instant::now();
            while first.elapsed() < BURST
                && let Ok(more) = timeout(ahead.quiet(QUIET), self.watch.changed()).await
            {
                ahead = ahead.max(more);
            }
            self.read();
            assert!(Instant::now() < end, "{last:?} was never seen: {:?}", self.reads);
        }
    }
}

#[tokio::test]
async fn every_way_to_change_a_file_is_noticed_once_it_is_whole() {
    let mut all = tokio::task::JoinSet::new();
    for by in [By::Events, By::Looks, By::Both] {
        for (name, before, change) in WAYS {
            all.spawn(async move {
                let home = Wild::new(by).home;
                before(home.path());
                let mut wild = Wild::of(home, by);
                let place = wild.home.path().to_owned();
                let change = tokio::task::spawn_blocking(move || change(&place));
                wild.reads(Some("new")).await;
                let half = change.await.unwrap();
                // A look takes for whole what is the same for a second.
                if by == By::Events || half < LOOK {
                    let whole = |read: &Option<String>| {
                        read.as_deref().is_none_or(|read| read == "old" || read == "new")
                    };
                    assert!(wild.reads.iter().all(whole), "{name} by {by:?}: {:?}", wild.reads);
                }
                assert!(wild.reads.len() <= 4, "{name} by {by:?}: {:?}", wild.reads);
            });
        }
    }
    while let Some(result) = all.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn what_took_its_place_in_one_piece_is_not_waited_for() {
    let ways: [(Before, Way, Ahead); 4] = [
        (nothing, sed, Ahead::Nothing),
        (config_map, config_map_updated, Ahead::Nothing),
        (nothing, halves, Ahead::Perhaps),
        (nothing, hard_link, Ahead::Perhaps),
    ];
    for (before, change, ahead) in ways {
        let home = Wild::new(By::Events).home;
        before(home.path());
        let mut wild = Wild::of(home, By::Events);
        change(wild.home.path());
        let mut most = wild.noticed().await.unwrap();
        while let Ok(more) = timeout(QUIET, wild.watch.changed()).await {
            most = most.max(more);
        }
        assert_eq!(most, ahead);
    }
}

#[tokio::test]
async fn what_goes_and_what_is_made_bit_by_bit_is_found_by_looks() {
    let mut wild = Wild::new(By::Both);
    fs::remove_dir_all(wild.home.path().join("conf")).unwrap();
    wild.reads(None).await;
    fs::create_dir(wild.home.path().join("conf")).unwrap();
    fs::write(wild.file(), "new").unwrap();
    wild.reads(Some("new")).await;
    // From now on events tell of the new folder.
    wild.watch.tick.reset_after(LIMIT * 100);
    fs::write(wild.file(), "newer").unwrap();
    wild.reads(Some("newer")).await;
    fs::write(wild.file(), "").unwrap();
    wild.reads(Some("")).await;
}

#[tokio::test]
async fn another_mode_and_another_time_are_reasons_to_look() {
    for by in [By::Events, By::Looks] {
        let mut wild = Wild::new(by);
        fs::set_permissions(wild.file(), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(wild.noticed().await.is_some(), "{by:?}");
        wild.read();
        File::options()
            .append(true)
            .open(wild.file())
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        assert!(wild.noticed().await.is_some(), "{by:?}");
    }
}

#[tokio::test]
async fn templates_beside_the_file_count() {
    for by in [By::Events, By::Looks] {
        let mut wild = Wild::new(by);
        let next = wild.home.path().join("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("nginx.conf"), "1").unwrap();
        let templates = wild.home.path().join("conf/templates");
        fs::rename(next, &templates).unwrap();
        assert!(wild.noticed().await.is_some(), "{by:?}: the folder");
        wild.read();
        fs::write(templates.join("nginx.conf"), "2").unwrap();
        assert!(wild.noticed().await.is_some(), "{by:?}: a file in it");
    }
}

#[tokio::test]
async fn neighbours_and_readers_are_nothing_to_wake_for() {
    let mut wild = Wild::new(By::Events);
    fs::write(wild.home.path().join("conf/neighbour"), "noise").unwrap();
    fs::read(wild.file()).unwrap();
    assert!(timeout(LOOK / 4, wild.watch.changed()).await.is_err());
}

#[tokio::test]
async fn ten_thousand_changes_in_a_second_are_a_few_and_the_last_is_not_missed() {
    let mut wild = Wild::new(By::Events);
    let file = wild.file();
    fs::write(&file, "").unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        for _ in 0..10_000 {
            let mut file = File::options().append(true).open(&file).unwrap();
            file.write_all(b"x").unwrap();
        }
        begun.elapsed()
    });
    wild.reads(Some(&"x".repeat(10_000))).await;
    let took = writer.await.unwrap();
    let most = took.div_duration_f64(QUIET) + 2.0;
    assert!(
        (wild.reads.len() as f64) < most,
        "{} in {took:?}",
        wild.reads.len()
    );
}

#[tokio::test]
async fn a_queue_that_overflows_is_a_reason_to_look() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let mut wild = Wild::new(By::Events);
    // Nobody reads events meanwhile. Only one that differs from the one before it takes a place in the queue.
    let names = ["a", "b"].map(|name| wild.home.path().join("conf").join(name));
    for name in names.iter().cycle().take(limit + 100) {
        File::create(name).unwrap();
    }
    fs::write(wild.file(), "new").unwrap();
    wild.reads(Some("new")).await;
    fs::write(wild.file(), "newer").unwrap();
    wild.reads(Some("newer")).await;
}

/// What somebody does in the state directory to the generation that is live.
type Deed = fn(&Path);

const DEEDS: [(&str, Deed); 7] = [
    ("edited", |state| {
        fs::write(state.join("1/nginx/conf"), "foreign").unwrap()
    }),
    ("deleted", |state| {
        fs::remove_file(state.join("1/nginx/conf")).unwrap()
    }),
    ("replaced by a link", |state| {
        fs::write(state.join("elsewhere"), "").unwrap();
        symlink(state.join("elsewhere"), state.join("new")).unwrap();
        fs::rename(state.join("new"), state.join("1/nginx/conf")).unwrap();
    }),
    ("another mode", |state| {
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(state.join("1/nginx/conf"), open).unwrap();
    }),
    ("a file added", |state| {
        fs::write(state.join("1/nginx/more"), "").unwrap()
    }),
    ("led elsewhere", |state| swap(state, "2", "current")),
    ("led nowhere", |state| {
        fs::remove_file(state.join("current")).unwrap()
    }),
];

#[tokio::test]
async fn whatever_is_done_to_what_is_live_is_heard_of_at_once() {
    for by in [By::Events, By::Looks] {
        for (name, deed) in DEEDS {
            let mut wild = Wild::new(by);
            let state = wild.home.path().join("state");
            fs::create_dir_all(state.join("1/nginx")).unwrap();
            fs::write(state.join("1/nginx/conf"), "ours").unwrap();
            swap(&state, "1", "current");
            let made = || Made {
                link: state.join("current"),
                target: Some("1".into()),
                folders: vec![state.join("1"), state.join("1/nginx")],
            };
            wild.watch.follow(made());
            if by == By::Events {
                // As a switch of our own.
                swap(&state, "1", "current");
                assert!(
                    timeout(QUIET, wild.watch.changed()).await.is_err(),
                    "nothing was done"
                );
            }
            wild.watch.follow(made());
            deed(&state);
            assert!(wild.noticed().await.is_some(), "{name} by {by:?}");
        }
    }
}
