//! Reading the file: bytes in, text and positions out. Nothing is interpreted here.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// The largest file that is read. An allow-list of 100,000 apps takes 4.3 MB.
pub const MAX_BYTES: u64 = 8 << 20;

/// A configuration file as it was read: what positions in messages refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText {
    /// As shown in messages.
    pub path: String,
    /// The whole file.
    pub text: Arc<str>,
    /// SHA-256 of the bytes in hex: the same input has the same hash.
    pub hash: String,
    line_starts: Arc<[usize]>,
}

/// Why the file gave no text.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing there.
    #[error("there is no file {}. Write one with `dstack-vpc init`, or leave out --config", .0.display())]
    Missing(PathBuf),
    /// A folder where a file should be.
    #[error("{} is a directory; give the path of the file in it, e.g. {}", .0.display(), .0.join("vpc.toml").display())]
    Directory(PathBuf),
    /// A pipe, socket or device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The file system refused.
    #[error("cannot read {}: {source}. Give the user of dstack-vpc read access to it", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// In the system's words.
        source: std::io::Error,
    },
    /// More than [`MAX_BYTES`].
    #[error("{} is {} MiB long; a vpc.toml has at most {} MiB, so this is another file", .path.display(), .bytes >> 20, MAX_BYTES >> 20)]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Not text.
    #[error("{}:{line}: byte {offset} of the file is not UTF-8; a vpc.toml is UTF-8 text", .path.display())]
    NotUtf8 {
        /// Which file.
        path: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Offset of the first bad byte, from 0.
        offset: usize,
    },
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<ConfigText, ReadError> {
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ReadError::Missing(path.to_owned()),
        _ => ReadError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if about.is_dir() {
        return Err(ReadError::Directory(path.to_owned()));
    }
    if !about.is_file() {
        // Opening a pipe would wait for its writer.
        return Err(ReadError::NotAFile(path.to_owned()));
    }
    let too_large = |bytes| ReadError::TooLarge {
        path: path.to_owned(),
        bytes,
    };
    if about.len() > MAX_BYTES {
        return Err(too_large(about.len()));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // The file may have grown since it was looked at.
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_BYTES + 1), &mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    ConfigText::from_bytes(path, bytes)
}

impl ConfigText {
    /// Takes bytes that were read elsewhere; `path` is what messages call them.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ReadError> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(path.display().to_string(), text)),
            Err(e) => {
                let offset = e.utf8_error().valid_up_to();
                let before = &e.as_bytes()[..offset];
                Err(ReadError::NotUtf8 {
                    path: path.to_owned(),
                    line: 1 + before.iter().filter(|&&b| b == b'\n').count(),
                    offset,
                })
            }
        }
    }

    /// Takes text; `path` is what messages call it.
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text: Arc<str> = text.into().into();
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            path: path.into(),
            hash: hex::encode(Sha256::digest(text.as_bytes())),
            text,
            line_starts,
        }
    }

    /// The line of an offset, from 1.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&at| at <= offset)
    }

    /// The range as a place with line and column.
    pub(super) fn spot(&self, span: Range<usize>) -> Spot {
        let start = span.start.min(self.text.len());
        let line = self.line_at(start);
        let line_start = self.line_starts[line - 1];
        let column = 1 + self
            .text
            .get(line_start..start)
            .map_or(0, |before| before.chars().count());
        Spot {
            line,
            column,
            span: start..span.end.min(self.text.len()).max(start),
        }
    }

    /// One line without its end, and the offset at which it starts.
    pub(super) fn line(&self, line: usize) -> (usize, &str) {
        let start = self.line_starts[line - 1];
        let rest = &self.text[start..];
        (
            start,
            rest.split('\n').next().unwrap_or(rest).trim_end_matches('\r'),
        )
    }
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// In bytes of the file.
    pub span: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_lines_and_characters() {
        let text = ConfigText::new("vpc.toml", "a = 1\nä = \"ö\"\n");
        let at = text.text.find("\"ö\"").unwrap();
        let spot = text.spot(at..at + 4);
        assert_eq!((spot.line, spot.column), (2, 5));
        assert_eq!(text.line(2), (6, "ä = \"ö\""));
        assert_eq!(text.spot(99..120).line, 3);
    }

    #[test]
    fn what_is_no_text_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpc.toml");
        let words = |path: &Path| {
            read(path)
                .unwrap_err()
                .to_string()
                .replace(&dir.path().display().to_string(), "/d")
        };
        assert!(words(&path).starts_with("there is no file /d/vpc.toml."));
        assert!(
            words(dir.path())
                .starts_with("/d is a directory; give the path of the file in it, e.g. /d/vpc.toml")
        );
        std::fs::write(&path, b"role = 1\n\n# \xff\n").unwrap();
        assert_eq!(
            words(&path),
            "/d/vpc.toml:3: byte 12 of the file is not UTF-8; a vpc.toml is UTF-8 text"
        );
        std::fs::write(&path, vec![b'x'; 10 << 20]).unwrap();
        assert!(words(&path).starts_with("/d/vpc.toml is 10 MiB long; a vpc.toml has at most 8 MiB"));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(&*read(&path).unwrap().text, "");
    }
}
