//! The API key on disk, and which keys were made here, so that each is deleted when the next one is in use.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Secret;

/// More than any key is long, and more than the list of those that could not be deleted yet.
const MAX_FILE: u64 = 64 << 10;

/// The key, and beside it `<key file>.made`: the prefixes of the keys that were made, a line each. They are no
/// secrets, and what remains when the key itself is lost.
#[derive(Clone)]
pub(super) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// `None`: there is none, or what is there is no key.
    pub(super) fn read(&self) -> io::Result<Option<Secret>> {
        let text = read(&self.path)?;
        let key = text.trim();
        let is_one_word = !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        Ok(is_one_word.then(|| Secret::new(key)))
    }

    /// Stores a key that was just made; it is on disk for good when this returns.
    pub(super) fn store(&self, key: &Secret, prefix: &str) -> io::Result<()> {
        let mut made = self.made()?;
        made.push(prefix.to_owned());
        self.set_made(&made)?;
        replace(&self.path, key.expose())
    }

    /// The prefixes of the keys that were made and not deleted.
    pub(super) fn made(&self) -> io::Result<Vec<String>> {
        let text = read(&self.path_of_made())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    pub(super) fn set_made(&self, prefixes: &[String]) -> io::Result<()> {
        replace(&self.path_of_made(), &prefixes.join("\n"))
    }

    fn path_of_made(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".made");
        path.into()
    }
}

/// What is missing is empty.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a file in one step, private from its first moment.
fn replace(path: &Path, line: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    crate::identity::make_private_dir(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{line}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_private_and_remembered() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secrets/key");
        let file = KeyFile::new(&path);
        assert_eq!(file.read().unwrap(), None);
        file.store(&Secret::new("abcdefg.one"), "abcdefg").unwrap();
        file.store(&Secret::new("hijklmn.two"), "hijklmn").unwrap();
        assert_eq!(file.read().unwrap(), Some(Secret::new("hijklmn.two")));
        assert_eq!(file.made().unwrap(), ["abcdefg", "hijklmn"]);
        for path in [&path, &file.path_of_made()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }

        for junk in ["", "\n", "two words", "\u{0}\u{1}"] {
            fs::write(&path, junk).unwrap();
            assert_eq!(file.read().unwrap(), None, "{junk:?}");
        }
    }
}
