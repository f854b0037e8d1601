//! Files and folders that are mounted: over each other, and from where nothing is told.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::time::{interval, timeout};

use super::{By, LIMIT, LOOK, Wild};

/// Runs in a mount namespace of its own.
fn with_mounts(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS)
            .expect("a mount namespace can be made by root only: run this test as root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn mounts_are_followed() {
    with_mounts(async || {
        let mut wild = Wild::new(By::Both);
        let other = wild.home.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("vpc.toml"), "mounted").unwrap();
        // The file alone, as `docker run -v vpc.toml:/etc/vpc.toml`.
        bind(&other.join("vpc.toml"), &wild.file());
        wild.reads(Some("mounted")).await;
        // What is written to it outside is an event inside.
        wild.watch.tick.reset_after(LIMIT * 100);
        fs::write(other.join("vpc.toml"), "edited outside").unwrap();
        wild.reads(Some("edited outside")).await;
        wild.watch.tick.reset();

        let whole = wild.home.path().join("whole");
        fs::create_dir(&whole).unwrap();
        fs::write(whole.join("vpc.toml"), "of another folder").unwrap();
        bind(&whole, &wild.home.path().join("conf"));
        wild.reads(Some("of another folder")).await;
        nix::mount::umount2(&wild.home.path().join("conf"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        wild.reads(Some("edited outside")).await;
    });
}

#[test]
fn a_file_system_that_tells_nothing_is_looked_at() {
    with_mounts(async || {
        let home = tempfile::tempdir().unwrap();
        // An overlay tells nothing of what is written to the folder below it.
        let tmpfs = Some("tmpfs");
        mount(tmpfs, home.path(), tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        let [below, above, work, conf] =
            ["below", "above", "work", "conf"].map(|name| home.path().join(name));
        for folder in [&below, &above, &work, &conf] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(below.join("vpc.toml"), "old").unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            below.display(),
            above.display(),
            work.display()
        );
        let overlay = Some("overlay");
        mount(overlay, &conf, overlay, MsFlags::empty(), Some(options.as_str())).expect("an overlay");

        let mut wild = Wild::of(home, By::Events);
        fs::write(below.join("vpc.toml"), "new").unwrap();
        assert!(timeout(LOOK, wild.watch.changed()).await.is_err(), "it does tell");
        wild.watch.tick = interval(LOOK);
        wild.reads(Some("new")).await;
    });
}
