//! The state directory: can it be written, is there room, does it stay, and who can read the secrets in it.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::paths::StateDir;

/// A generation has some 30 KB, a registry of 100,000 nodes some 50 MB.
const LITTLE: u64 = 64 << 20;
const NOTHING: u64 = 4 << 20;

pub(super) fn findings(state: &StateDir) -> Vec<Finding> {
    let mut findings = Vec::new();
    if belongs_to_another(state).is_none() {
        findings.push(writable(state.root()));
    }
    if let Some(there) = nearest(state.root()) {
        findings.extend(room(&there));
        findings.extend(kind(&there));
    }
    for folder in [state.secrets(), state.identity()] {
        findings.extend(secrets(&folder, true));
    }
    // The programs make these files with modes of their own: the folder keeps others out.
    for folder in [state.headscale(), state.tailscale(), state.registry()] {
        findings.extend(secrets(&folder, false));
    }
    findings
}

/// Its uid, when only another user can work with the state directory.
pub(super) fn belongs_to_another(state: &StateDir) -> Option<u32> {
    let owner = std::fs::metadata(state.root()).ok()?.uid();
    let may = access(state.root(), AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    (!may && owner != nix::unistd::geteuid().as_raw()).then_some(owner)
}

/// Asks the kernel and writes nothing.
fn writable(root: &Path) -> Finding {
    let place = nearest(root).unwrap_or_else(|| PathBuf::from("/"));
    let shown = root.display();
    if !place.is_dir() {
        return Finding::error("state", format!("{} is not a folder", place.display()))
            .why("Everything that dstack-vpc writes lies below the state directory.")
            .mend("choose another one: --state-dir, or DSTACK_VPC_STATE_DIR");
    }
    match access(&place, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if place == root => {
            Finding::ok("state", format!("the state directory {shown} can be written"))
        }
        Ok(()) => Finding::ok("state", format!("the state directory {shown} can be made")),
        Err(error) => {
            let why = match error {
                nix::errno::Errno::EROFS => "it is on a read-only file system".to_owned(),
                nix::errno::Errno::EACCES => format!("this user ({}) may not", nix::unistd::geteuid()),
                other => other.desc().to_owned(),
            };
            Finding::error(
                "state",
                format!("the state directory {shown} cannot be written: {why}"),
            )
            .why("Everything that dstack-vpc writes lies there: nothing can change, and a start fails.")
            .mend("run it as the daemon's user, mount a volume there, or choose another: --state-dir")
        }
    }
}

fn room(place: &Path) -> Option<Finding> {
    let about = statvfs(place).ok()?;
    let free = about.blocks_available() as u64 * about.fragment_size() as u64;
    // Some file systems have no such limit, and say 0 of 0.
    let names = about.files() as u64 == 0 || about.files_available() as u64 > 100;
    let shown = place.display();
    let what = match (free, names) {
        (_, false) => format!("{shown}: the file system has no room for more files (inodes)"),
        (free, _) if free < LITTLE => format!("{shown}: only {} MiB are free", free >> 20),
        (free, _) => {
            return Some(Finding::ok(
                "disk",
                format!("{shown}: {} MiB are free", free >> 20),
            ));
        }
    };
    let finding = Finding::error("disk", what)
        .why("A full disk keeps the last good configuration serving, but nothing new goes live and no node is recorded.")
        .mend(format!("du -x -d 2 {shown} | sort -n | tail"));
    Some(finding.milder(free >= NOTHING && names))
}

/// File systems on which sockets, locks and databases are not what they should be, or that do not stay.
fn kind(place: &Path) -> Option<Finding> {
    let magic = statfs(place).ok()?.filesystem_type().0 as u64 & 0xffff_ffff;
    let shown = place.display();
    // From the kernel's include/uapi/linux/magic.h.
    let network = match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9p",
        0x5346_414f => "AFS",
        _ => "",
    };
    if !network.is_empty() {
        return Some(
            Finding::warning("disk", format!("{shown} is on a network file system ({network})"))
                .why("Sockets, locks and the databases of Headscale and the registry need a local one.")
                .mend("put the state directory on a disk of this machine"),
        );
    }
    let passing = match magic {
        0x794c_7630 => "in the container's own layer",
        0x0102_1994 => "in memory (tmpfs)",
        _ => return None,
    };
    Some(
        Finding::warning(
            "disk",
            format!("{shown} is {passing}: it is gone when the container is made anew"),
        )
        .why("A server would lose its nodes and keys, and a node its address. A mesh machine loses nothing.")
        .mend(format!(
            "in the app's compose file:  volumes: [\"vpc-state:{shown}\"]"
        )),
    )
}

/// What others can read of a folder and, where it goes `deep`, of all that lies in it.
fn secrets(folder: &Path, deep: bool) -> Option<Finding> {
    let mut open = Vec::new();
    match readable_by_others(folder, deep, &mut open) {
        Err(ErrorKind::NotFound) => None,
        Err(error) => Some(Finding::note(
            "secrets",
            format!(
                "{}: {error}; run this as the daemon's user to have it looked at",
                folder.display()
            ),
        )),
        Ok(()) if open.is_empty() => Some(Finding::ok(
            "secrets",
            format!("nobody else can read what lies in {}", folder.display()),
        )),
        Ok(()) => {
            let more = match open.len() {
                1 => String::new(),
                more => format!(" (and {} more)", more - 1),
            };
            Some(
                Finding::error("secrets", format!("others can read {}{more}", open[0].display()))
                    .why("Whoever reads a key of this machine can pass for it; what was readable should count as known.")
                    .mend(format!("chmod -R go= {}", folder.display()))
                    .mend("then have new ones made: dstack-vpc renew; for a server's, docs/operations.md"),
            )
        }
    }
}

fn readable_by_others(path: &Path, deep: bool, open: &mut Vec<PathBuf>) -> Result<(), ErrorKind> {
    let about = std::fs::symlink_metadata(path).map_err(|e| e.kind())?;
    if about.is_symlink() {
        return Ok(());
    }
    if about.permissions().mode() & 0o077 != 0 {
        open.push(path.to_owned());
    }
    if about.is_dir() && deep {
        for entry in std::fs::read_dir(path).map_err(|e| e.kind())?.flatten() {
            readable_by_others(&entry.path(), deep, open)?;
        }
    }
    Ok(())
}

/// The path itself or the first above it that is there.
fn nearest(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use std::fs;

    #[test]
    fn secrets_that_others_can_read_are_named_with_what_closes_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert_eq!(secrets(&state.secrets(), true), None);
        crate::identity::make_private_dir(&state.secrets()).unwrap();
        let key = state.secrets().join("shared_key");
        fs::write(&key, "secret").unwrap();
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(secrets(&state.secrets(), true).unwrap().severity, Severity::Ok);
        fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        let finding = secrets(&state.secrets(), true).unwrap();
        assert_eq!(finding.severity, Severity::Error);
        assert_eq!(finding.what, format!("others can read {}", key.display()));
        assert_eq!(
            finding.mend[0],
            format!("chmod -R go= {}", state.secrets().display())
        );
    }

    #[test]
    fn a_file_in_the_way_and_a_folder_still_to_be_made() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(&dir.path().join("not/yet")).severity, Severity::Ok);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(writable(&file.join("state")).severity, Severity::Error);
        assert!(!dir.path().join("not").exists());
    }
}
