//! Which certificates are needed no longer.

use std::fs;
use std::path::{Path, PathBuf};

use super::store::{CURRENT, StoreError, numbered, remove};
use crate::paths::StateDir;

/// The largest rendered file that is searched.
const MAX_RENDERED: u64 = 8 << 20;

/// Removes the certificates that nobody can need: older than the one before the current, and named by no kept
/// generation. A generation that is rolled back to finds the certificate that its files name.
pub fn prune(state: &StateDir) -> Result<(), StoreError> {
    let home = state.identity();
    let current = fs::read_link(home.join(CURRENT)).ok();
    let all = numbered(&home);
    let is_current = |dir: &Path| dir.file_name() == current.as_ref().and_then(|name| name.file_name());
    let Some(position) = all.iter().position(|(_, dir)| is_current(dir)) else {
        return Ok(());
    };
    // The one before is kept also when nothing names it: a generation that will may be on its way.
    let mut old: Vec<PathBuf> = all
        .into_iter()
        .take(position.saturating_sub(1))
        .map(|(_, dir)| dir)
        .collect();
    if !old.is_empty() {
        keep_what_is_named(&state.generations(), &mut old);
    }
    for dir in old {
        remove(&dir).map_err(|source| StoreError::Io {
            doing: "remove",
            path: dir,
            source,
        })?;
    }
    Ok(())
}

/// Takes from `dirs` those whose path stands in a file below `folder`.
fn keep_what_is_named(folder: &Path, dirs: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(about) = entry.path().symlink_metadata() else {
            continue;
        };
        if about.is_dir() {
            keep_what_is_named(&entry.path(), dirs);
        } else if about.is_file() && about.len() <= MAX_RENDERED {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            dirs.retain(|dir| !dir.to_str().is_some_and(|dir| text.contains(dir)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_nobody_can_need_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::new(home.path());
        prune(&state).unwrap();
        let folder = |number: u32| state.identity().join(format!("{number:06}"));
        for number in 1..=6 {
            fs::create_dir_all(folder(number)).unwrap();
        }
        let left = || {
            numbered(&state.identity())
                .into_iter()
                .map(|(number, _)| number)
                .collect::<Vec<_>>()
        };
        prune(&state).unwrap();
        assert_eq!(
            left(),
            [1, 2, 3, 4, 5, 6],
            "without a link nothing is known to be old"
        );

        symlink("000005", state.identity().join(CURRENT)).unwrap();
        let rendered = state.generations().join("000009/nginx");
        fs::create_dir_all(&rendered).unwrap();
        let line = format!("ssl_certificate {}/chain.pem;", folder(2).display());
        fs::write(rendered.join("nginx.conf"), line).unwrap();
        prune(&state).unwrap();
        assert_eq!(left(), [2, 4, 5, 6]);
    }
}
