//! The ways in which editors, tools and orchestrators change a file.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What somebody does in the folder above `conf`, so that the file says `new` in the end. How long it is half a file.
pub(super) type Way = fn(&Path) -> Duration;

const AT_ONCE: Duration = Duration::ZERO;
/// Between two steps of somebody who is slow.
const SLOW: Duration = Duration::from_millis(200);

pub(super) fn halves(home: &Path) -> Duration {
    let mut file = File::create(home.join("conf/vpc.toml")).unwrap();
    file.write_all(b"ne").unwrap();
    let begun = Instant::now();
    std::thread::sleep(SLOW);
    file.write_all(b"w").unwrap();
    begun.elapsed()
}

/// With a backup, as it is set up by default.
fn vim(home: &Path) -> Duration {
    let (file, backup) = (home.join("conf/vpc.toml"), home.join("conf/vpc.toml~"));
    fs::rename(&file, &backup).unwrap();
    let begun = Instant::now();
    halves(home);
    fs::remove_file(backup).unwrap();
    begun.elapsed()
}

pub(super) fn sed(home: &Path) -> Duration {
    let sed = Command::new("sed")
        .args(["-i", "s/old/new/"])
        .arg(home.join("conf/vpc.toml"))
        .status();
    assert!(sed.expect("sed").success());
    AT_ONCE
}

fn deleted_and_made_again(home: &Path) -> Duration {
    fs::remove_file(home.join("conf/vpc.toml")).unwrap();
    let begun = Instant::now();
    std::thread::sleep(SLOW);
    halves(home);
    begun.elapsed()
}

fn folder_moved_into_place(home: &Path) -> Duration {
    fs::create_dir(home.join("next")).unwrap();
    fs::write(home.join("next/vpc.toml"), "new").unwrap();
    fs::rename(home.join("conf"), home.join("former")).unwrap();
    fs::rename(home.join("next"), home.join("conf")).unwrap();
    AT_ONCE
}

fn folder_moved_away_and_back(home: &Path) -> Duration {
    fs::rename(home.join("conf"), home.join("former")).unwrap();
    fs::write(home.join("former/vpc.toml"), "new").unwrap();
    fs::rename(home.join("former"), home.join("conf")).unwrap();
    AT_ONCE
}

/// `link`, in `folder`, leads elsewhere from one moment to the next.
pub(super) fn swap(folder: &Path, target: &str, link: &str) {
    symlink(target, folder.join("..tmp")).unwrap();
    fs::rename(folder.join("..tmp"), folder.join(link)).unwrap();
}

/// As Kubernetes mounts a ConfigMap: `vpc.toml` → `..data/vpc.toml`, `..data` → `..1`.
pub(super) fn config_map(home: &Path) {
    let conf = home.join("conf");
    fs::create_dir(conf.join("..1")).unwrap();
    fs::rename(conf.join("vpc.toml"), conf.join("..1/vpc.toml")).unwrap();
    swap(&conf, "..1", "..data");
    swap(&conf, "..data/vpc.toml", "vpc.toml");
}

pub(super) fn config_map_updated(home: &Path) -> Duration {
    let conf = home.join("conf");
    fs::create_dir(conf.join("..2")).unwrap();
    fs::write(conf.join("..2/vpc.toml"), "new").unwrap();
    swap(&conf, "..2", "..data");
    fs::remove_dir_all(conf.join("..1")).unwrap();
    AT_ONCE
}

fn linked_folder(home: &Path) {
    fs::rename(home.join("conf"), home.join("release-1")).unwrap();
    swap(home, "release-1", "conf");
}

fn linked_folder_swapped(home: &Path) -> Duration {
    fs::create_dir(home.join("release-2")).unwrap();
    fs::write(home.join("release-2/vpc.toml"), "new").unwrap();
    swap(home, "release-2", "conf");
    AT_ONCE
}

pub(super) fn hard_link(home: &Path) -> Duration {
    fs::write(home.join("conf/other"), "new").unwrap();
    fs::remove_file(home.join("conf/vpc.toml")).unwrap();
    fs::hard_link(home.join("conf/other"), home.join("conf/vpc.toml")).unwrap();
    AT_ONCE
}

/// The same size, and with the times of the old one.
fn times_set_back(home: &Path) -> Duration {
    let path = home.join("conf/vpc.toml");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "new").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(before)
        .unwrap();
    AT_ONCE
}

pub(super) fn nothing(_: &Path) {}

/// What was there before is set up first.
pub(super) type Before = fn(&Path);

pub(super) const WAYS: [(&str, Before, Way); 10] = [
    ("in two halves", nothing, halves),
    ("vim", nothing, vim),
    ("sed -i", nothing, sed),
    ("deleted and made again", nothing, deleted_and_made_again),
    ("folder moved into place", nothing, folder_moved_into_place),
    ("folder moved away and back", nothing, folder_moved_away_and_back),
    ("ConfigMap", config_map, config_map_updated),
    ("linked folder", linked_folder, linked_folder_swapped),
    ("hard link", nothing, hard_link),
    ("times set back", nothing, times_set_back),
];
