//! Which consumers are installed, and what else the machine allows.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::{AccessFlags, Group, User, access, geteuid};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::remember::replace_file;
use super::{Fact, HostFacts, Installed, Programs, Version};
use crate::paths::StateDir;
use crate::spec::Spec;

/// Searched after `$PATH`: an ordinary user's often lacks them.
const MORE_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/sbin"];

/// Below `<state>/run`.
const MEMORY: &str = "programs.json";

/// How long a program may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds programs, and runs each only once for its version as long as its file stays the same.
#[derive(Debug, Default)]
pub struct ProgramScanner {
    known: Mutex<HashMap<FileState, Version>>,
}

/// What changes when a program is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct FileState {
    path: PathBuf,
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

impl ProgramScanner {
    /// Knows what an earlier scanner learned: asking supervisord alone takes a third of a second.
    pub(super) fn recalled(state: &StateDir) -> Self {
        let known: Vec<(FileState, Version)> = std::fs::read(state.run().join(MEMORY))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default();
        Self {
            known: Mutex::new(known.into_iter().collect()),
        }
    }

    /// Keeps what was learned for the next one.
    pub(super) fn remember(&self, state: &StateDir) -> std::io::Result<()> {
        let known: Vec<_> = self.known().clone().into_iter().collect();
        replace_file(&state.run(), MEMORY, &serde_json::to_vec(&known)?)
    }

    /// Looks at the machine; starts a program only when it is new here.
    pub async fn scan(&self, spec: &Spec) -> Programs {
        let (nginx, supervisord, headscale, tailscaled, tailscale) = tokio::join!(
            self.look(&spec.nginx.program, &["-v"]),
            self.look(&spec.supervisor.program, &["--version"]),
            self.look(&spec.headscale.program, &["version"]),
            self.look(&spec.tailscale.program, &["--version"]),
            self.look(&spec.tailscale.client, &["version"]),
        );
        Programs {
            nginx,
            supervisord,
            headscale,
            tailscaled,
            tailscale,
        }
    }

    async fn look(&self, program: &Path, version_args: &[&str]) -> Option<Fact<Installed>> {
        let path = find(program)?;
        let about = std::fs::metadata(&path).ok()?;
        let state = FileState {
            path: path.clone(),
            modified: (about.mtime(), about.mtime_nsec()),
            size: about.size(),
            inode: about.ino(),
        };
        let known = self.known().get(&state).copied();
        let version = match known {
            Some(version) => version,
            None => match ask_version(&path, version_args).await {
                Ok(version) => {
                    let mut known = self.known();
                    known.retain(|known, _| known.path != path);
                    known.insert(state, version);
                    version
                }
                // Not remembered: asked again at the next look.
                Err(why) => {
                    tracing::warn!(program = %path.display(), "cannot tell its version: {why}");
                    Version::default()
                }
            },
        };
        let source = if program.components().count() > 1 {
            "its path"
        } else {
            "$PATH"
        };
        Some(Fact::now(Installed { path, version }, source))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FileState, Version>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the same files are looked for.
pub(super) fn names_same_programs(one: &Spec, other: &Spec) -> bool {
    programs(one) == programs(other)
}

fn programs(spec: &Spec) -> [&Path; 5] {
    [
        &spec.nginx.program,
        &spec.supervisor.program,
        &spec.headscale.program,
        &spec.tailscale.program,
        &spec.tailscale.client,
    ]
}

impl Version {
    /// The first `a.b` or `a.b.c` in a text; a leading `v` and whatever follows are ignored.
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find_map(|word| {
                let mut parts = word.split('.').map(str::parse);
                let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
                    return None;
                };
                Some(Version(
                    major,
                    minor,
                    parts.next().and_then(Result::ok).unwrap_or(0),
                ))
            })
    }
}

/// What the machine allows, apart from programs.
pub fn host_facts() -> HostFacts {
    HostFacts {
        root: geteuid().is_root(),
        web_user: ["nginx", "www-data", "nobody"].iter().find_map(|name| {
            let user = User::from_name(name).ok()??;
            let group = Group::from_gid(user.gid).ok()??;
            Some((user.name, group.name))
        }),
        tun: std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .is_ok(),
        ipv6: std::fs::read("/proc/net/if_inet6").is_ok_and(|table| !table.is_empty()),
    }
}

/// A path as it is; a name through `$PATH`, then [`MORE_FOLDERS`].
fn find(program: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if program.components().count() > 1 {
        return std::path::absolute(program).ok().filter(runs);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_FOLDERS.map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(runs)
}

/// Runs the program for its version; 0.0.0 when it tells none that can be read.
async fn ask_version(path: &Path, args: &[&str]) -> Result<Version, String> {
    let output = Command::new(path)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(VERSION_TIMEOUT, output).await {
        // nginx writes on stderr; headscale may log there before it answers on stdout.
        Ok(Ok(output)) => Ok([&output.stdout, &output.stderr]
            .iter()
            .find_map(|text| Version::find(&String::from_utf8_lossy(text)))
            .unwrap_or_default()),
        Ok(Err(e)) => Err(format!("it does not run: {e}")),
        Err(_) => Err(format!("no answer within {}s", VERSION_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_found_in_what_programs_write() {
        for (text, version) in [
            ("nginx version: nginx/1.22.1", Version(1, 22, 1)),
            ("nginx version: openresty/1.27.1.2", Version(1, 27, 1)),
            ("4.2.5\n", Version(4, 2, 5)),
            ("v0.26.1", Version(0, 26, 1)),
            (
                "headscale version v0.28.0-beta.1\ncommit: 3bd2af5",
                Version(0, 28, 0),
            ),
            (
                r#"{"version":"v0.27.1","commit":"0c6b9f5","buildTime":"2025-11-11T18:49:55Z"}"#,
                Version(0, 27, 1),
            ),
            (
                "1.98.2\n  tailscale commit: 12345\n  go version: go1.26.4",
                Version(1, 98, 2),
            ),
        ] {
            assert_eq!(Version::find(text), Some(version), "{text}");
        }
        assert_eq!(Version::find("dev"), None);
        assert_eq!(Version::find("2025-11"), None);
    }

    fn program(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("tool");
        // Written by another process: a file open for writing here could be inherited by a program that
        // another test starts, and would then be refused as busy.
        let written = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", text])
            .arg(&path)
            .status();
        assert!(written.unwrap().success());
        path
    }

    #[tokio::test]
    async fn a_program_is_run_once_until_its_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let script =
            |version: &str| format!("#!/bin/sh\necho x >> {}\necho v{version} >&2\n", runs.display());
        let path = program(dir.path(), &script("1.2.3"));
        let scanner = ProgramScanner::default();
        for _ in 0..3 {
            let found = scanner.look(&path, &[]).await.unwrap().value;
            assert_eq!((found.version, &found.path), (Version(1, 2, 3), &path));
        }
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 1);
        // Nor is it by the next scanner.
        let state = StateDir::new(dir.path().join("state"));
        scanner.remember(&state).unwrap();
        let scanner = ProgramScanner::recalled(&state);
        assert_eq!(
            scanner.look(&path, &[]).await.unwrap().value.version,
            Version(1, 2, 3)
        );
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 1);
        program(dir.path(), &script("1.2.30"));
        assert_eq!(
            scanner.look(&path, &[]).await.unwrap().value.version,
            Version(1, 2, 30)
        );
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 2);
    }

    #[tokio::test]
    async fn what_cannot_run_is_not_installed() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let scanner = ProgramScanner::default();
        assert_eq!(scanner.look(&path, &[]).await, None);
        assert_eq!(scanner.look(dir.path(), &[]).await, None);
        assert_eq!(
            scanner.look(Path::new("no-such-program-anywhere"), &[]).await,
            None
        );
    }
}
