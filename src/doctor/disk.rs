//! The state directory: can it be written, is there room, does it stay, and who can read the secrets in it.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::apply::Real;
use crate::apply::format::{self, FORMAT, FormatError};
use crate::paths::StateDir;
use crate::spec::Role;

/// A generation has some 30 KB, a registry of 100,000 nodes some 50 MB.
const LITTLE: u64 = 64 << 20;
const NOTHING: u64 = 4 << 20;

/// `role`: what this machine is, where that is known.
pub(super) fn findings(state: &StateDir, role: Option<Role>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if belongs_to_another(state).is_none() {
        findings.push(writable(state.root()));
    }
    findings.extend(format_of(state));
    if let Some(there) = nearest(state.root()) {
        findings.extend(room(&there));
        findings.extend(kind(&there, role));
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

/// Which version the directory is for.
fn format_of(state: &StateDir) -> Option<Finding> {
    let error = match format::check(&Real::new(state, None), state) {
        Ok(_) if !state.current().exists() => return None,
        Ok(FORMAT) => {
            return Some(Finding::ok(
                "format",
                format!("the state directory is in format {FORMAT}"),
            ));
        }
        Ok(format) => {
            return Some(Finding::ok(
                "format",
                format!("the state directory is in format {format}: the next start brings it to {FORMAT}"),
            ));
        }
        // Whoever may not look there is told so already.
        Err(FormatError::Disk(_)) => return None,
        Err(error) => error.to_string(),
    };
    let (what, mend) = error.split_once('\n').unwrap_or((&error, ""));
    Some(
        Finding::error("format", what)
            .why("This version would misread what lies there, so it neither starts nor changes anything.")
            .mend(mend),
    )
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
        .run(format!("du -x -d 2 {shown} | sort -n | tail"));
    Some(finding.milder(free >= NOTHING && names))
}

/// File systems on which sockets, locks and databases are not what they should be, or that do not stay.
fn kind(place: &Path, role: Option<Role>) -> Option<Finding> {
    /// As /proc/self/mountinfo names them.
    const NETWORK: [&str; 16] = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "9p",
        "afs",
        "lustre",
        "gfs2",
        "ocfs2",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.s3fs",
        "fuse.rclone",
    ];
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let kind = file_system(&mounts, &place.canonicalize().ok()?)?;
    let shown = place.display();
    if NETWORK.contains(&kind) {
        return Some(
            Finding::warning("disk", format!("{shown} is on a network file system ({kind})"))
                .why("Sockets, locks and the databases of Headscale and the registry need a local one.")
                .mend("put the state directory on a disk of this machine"),
        );
    }
    let passing = match kind {
        "overlay" => "in the container's own layer",
        "tmpfs" | "ramfs" => "in memory",
        _ => return None,
    };
    let what = format!("{shown} is {passing} ({kind}): it is gone when the container is made anew");
    let finding = match role {
        Some(role) if !role.server && !role.node => {
            Finding::note("disk", what).why("A mesh machine loses nothing: it asks anew.")
        }
        _ => Finding::warning("disk", what).why("A server loses its nodes and keys, and a node its address."),
    };
    Some(finding.mend(format!(
        "in the app's compose file:  volumes: [\"vpc-state:{shown}\"]"
    )))
}

/// The type of the file system that `path` is on, from /proc/self/mountinfo; proc(5) has the columns.
fn file_system<'m>(mounts: &'m str, path: &Path) -> Option<&'m str> {
    let mounted = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let at = before.split(' ').nth(4)?.replace("\\040", " ");
        path.starts_with(&at)
            .then_some((at.len(), after.split(' ').next()?))
    });
    // Of two at one place the later one covers the other.
    mounted.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
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
                    .run(format!("chmod -R go= {}", folder.display()))
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
    use super::super::{Mend, Severity};
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
            Mend::Run(format!("chmod -R go= {}", state.secrets().display()))
        );
    }

    #[test]
    fn the_innermost_mount_tells_the_file_system_and_the_last_of_several() {
        let mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                      30 22 0:50 / /srv rw shared:1 master:2 - nfs4 host:/a rw\n\
                      31 22 0:51 / /srv/with\\040space rw - fuse.sshfs host:/b rw\n\
                      32 22 0:52 / /mnt rw - ext4 /dev/sdb rw\n\
                      33 32 0:53 / /mnt rw - tmpfs none rw\n";
        for (path, kind) in [
            ("/var/lib", "ext4"),
            ("/srv", "nfs4"),
            ("/srvx", "ext4"),
            ("/srv/with space/state", "fuse.sshfs"),
            ("/mnt/state", "tmpfs"),
        ] {
            assert_eq!(file_system(mounts, Path::new(path)), Some(kind), "{path}");
        }
        assert_eq!(file_system("junk", Path::new("/")), None);
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
