//! `<state>/vpc/0/*`: what local apps learn of the VPN, through `http_listen` or as files.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::Group;

use super::credentials::Membership;
use crate::names::DnsName;

/// The files with the bytes each is to have.
type Contents = [(&'static str, Vec<u8>); 7];

/// A file could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub(super) struct FileError {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers<'a> {
    /// Only this user: 0600.
    Us,
    /// This group as well: 0640.
    Group(&'a str),
}

/// Everything the files tell. Text ends with a line break, as `echo` writes it and `$(cat …)` expects it.
pub(super) fn contents(
    membership: &Membership,
    address: Ipv4Addr,
    hostname: &DnsName,
    tailscale_status: &[u8],
) -> Contents {
    let line = |text: &str| format!("{text}\n").into_bytes();
    [
        ("shared_key", line(&membership.shared_key)),
        ("server_url", line(&membership.server_url)),
        ("tailscale_ip", line(&address.to_string())),
        ("actual_hostname", line(hostname.as_str())),
        ("tailscale_status.json", tailscale_status.to_vec()),
        ("instance_id", line(membership.instance_id.as_str())),
        ("vpc_server_app_id", line(&membership.server.to_string())),
    ]
}

/// Writes what differs from what is there.
pub(super) fn write(folder: &Path, contents: &Contents, readers: Readers<'_>) -> Result<(), FileError> {
    // nginx's workers pass through the folder, so it is open to all; its files are not.
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|source| FileError {
        path: folder.to_owned(),
        source,
    })?;
    for (name, bytes) in contents {
        let path = folder.join(name);
        let mode = readers.mode();
        let is_there = fs::symlink_metadata(&path)
            .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o7777 == mode)
            && fs::read(&path).is_ok_and(|there| there == *bytes);
        if !is_there {
            replace(&path, bytes, readers)?;
        }
    }
    Ok(())
}

/// Removes whatever is there: this machine is no node any more.
pub(super) fn clear(folder: &Path) -> Result<(), FileError> {
    let failed = |source| FileError {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        remove_file(&entry.map_err(failed)?.path())?;
    }
    Ok(())
}

/// Puts a file in place in one step: readers see the old one or the new one, whole.
pub(super) fn replace(path: &Path, bytes: &[u8], readers: Readers<'_>) -> Result<(), FileError> {
    let step = || {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        // Left over when a former life ended between these lines.
        remove_if_there(&staged)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(bytes)?;
        if let Readers::Group(name) = readers {
            let group =
                Group::from_name(name)?.ok_or_else(|| io::Error::other(format!("no group {name}")))?;
            fchown(&file, None, Some(group.gid.as_raw()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(readers.mode()))?;
        fs::rename(&staged, path)
    };
    step().map_err(|source| FileError {
        path: path.to_owned(),
        source,
    })
}

/// What is not there is removed already.
pub(super) fn remove_file(path: &Path) -> Result<(), FileError> {
    remove_if_there(path).map_err(|source| FileError {
        path: path.to_owned(),
        source,
    })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Readers<'_> {
    fn mode(self) -> u32 {
        match self {
            Self::Us => 0o600,
            Self::Group(_) => 0o640,
        }
    }
}
