//! `<state>/registry/nodes.redb`: one table of records, one of what else is to be kept.
//!
//! A file that is not whole is never touched: whatever is wrong with it, the way on is the operator's choice.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};

use crate::names::NodeId;
use crate::registry::{Node, OpenError, record};

const FILE: &str = "nodes.redb";
/// Stands beside the file for as long as there is one, so that a lost file is not taken for a fresh start.
const MARKER: &str = "nodes.redb.exists";
const MARKER_TEXT: &str = "nodes.redb in this folder holds every node that registered. As long as this file is here, \
                           the server will not start without it.\n";

const NODES: TableDefinition<&str, &[u8]> = TableDefinition::new("nodes");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const FORMAT: (&str, &[u8]) = ("format", b"1");
const SECRET: &str = "shared_secret";

/// Reads come from memory, so little is worth keeping here.
const CACHE: usize = 16 << 20;

/// The open file. No second one can be open at the same time, in this process or another.
pub(super) struct NodesFile {
    path: PathBuf,
    database: Database,
    /// What has to stand at `path` when we write: see [`NodesFile::is_in_place`].
    left_as: Cell<Stamp>,
}

/// Device, inode and length.
type Stamp = (u64, u64, u64);

/// One record to be written; `None` removes it.
pub(super) type Write1 = (NodeId, Option<Vec<u8>>);

impl NodesFile {
    /// Where the file is, in `<state>/registry`.
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// The file made its reader panic.
    pub(super) fn unreadable(dir: &Path) -> OpenError {
        OpenError::Damaged {
            path: dir.join(FILE),
            marker: dir.join(MARKER),
            why: "reading it failed".to_owned(),
        }
    }

    /// Opens the file in `dir`, or makes it where there never was one, and hands every record to `each`.
    ///
    /// Checks the whole file, so it takes seconds for a million records.
    pub(super) fn open(dir: &Path, each: impl FnMut(Node)) -> Result<Self, OpenError> {
        let (path, marker) = (dir.join(FILE), dir.join(MARKER));
        match fs::symlink_metadata(&path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && !marker.exists() => create(dir, &path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing { path, marker }),
            Err(e) => return Err(cannot("look at", &path)(e)),
        }
        let damaged = |why: String| OpenError::Damaged {
            path: path.clone(),
            marker: marker.clone(),
            why,
        };
        if stamp(&path).map_err(cannot("look at", &path))?.2 == 0 {
            return Err(damaged("it is empty".to_owned()));
        }
        let opened = Builder::new()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .open(&path);
        let database = opened.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.clone() },
            DatabaseError::Storage(StorageError::Io(e)) if !is_about_content(&e) => cannot("open", &path)(e),
            other => damaged(other.to_string()),
        })?;
        let file = Self {
            left_as: Cell::new(stamp(&path).map_err(cannot("look at", &path))?),
            database,
            path: path.clone(),
        };
        match file.meta(FORMAT.0).map_err(|e| damaged(e.to_string()))? {
            Some(format) if format == FORMAT.1 => {}
            Some(other) => {
                let format = String::from_utf8_lossy(&other).into_owned();
                return Err(OpenError::Newer { path, format });
            }
            None => return Err(damaged("it is a database of something else".to_owned())),
        }
        file.load(each).map_err(damaged)?;
        if !marker.exists() {
            put_marker(dir, &marker)?;
        }
        Ok(file)
    }

    /// All of it or nothing, durably. After an error the file has to be opened again.
    pub(super) fn write(&self, writes: &[Write1]) -> Result<(), redb::Error> {
        self.is_in_place()?;
        let transaction = self.database.begin_write()?;
        {
            let mut nodes = transaction.open_table(NODES)?;
            for (id, record) in writes {
                match record {
                    Some(record) => nodes.insert(id.as_str(), record.as_slice())?,
                    None => nodes.remove(id.as_str())?,
                };
            }
        }
        self.commit(transaction)
    }

    /// The secret that is stored, else `candidate`, which then is.
    pub(super) fn secret(&self, candidate: &[u8]) -> Result<Vec<u8>, redb::Error> {
        if let Some(stored) = self.meta(SECRET)? {
            return Ok(stored);
        }
        self.is_in_place()?;
        let transaction = self.database.begin_write()?;
        transaction.open_table(META)?.insert(SECRET, candidate)?;
        self.commit(transaction)?;
        Ok(candidate.to_vec())
    }

    fn commit(&self, transaction: redb::WriteTransaction) -> Result<(), redb::Error> {
        transaction.commit()?;
        self.left_as.set(stamp(&self.path)?);
        Ok(())
    }

    /// What is written into a file that was moved away, replaced or cut would be lost with this process.
    fn is_in_place(&self) -> Result<(), redb::Error> {
        match stamp(&self.path) {
            Ok(found) if found == self.left_as.get() => Ok(()),
            Ok(_) => Err(io::Error::other("somebody replaced or cut it while it was in use").into()),
            Err(error) => Err(error.into()),
        }
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn load(&self, mut each: impl FnMut(Node)) -> Result<(), String> {
        let words = |e: redb::Error| e.to_string();
        let transaction = self.database.begin_read().map_err(|e| words(e.into()))?;
        let table = transaction.open_table(NODES).map_err(|e| words(e.into()))?;
        for row in table.iter().map_err(|e| words(e.into()))? {
            let (id, bytes) = row.map_err(|e| words(e.into()))?;
            each(record::decode(id.value(), bytes.value())?);
        }
        Ok(())
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.len()))
}

/// A new file appears whole or not at all, and private from its first moment.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let staged = dir.join("nodes.redb.new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(cannot("clear", &staged)(e)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .map_err(cannot("create", &staged))?;
    let fill = || -> Result<(), redb::Error> {
        let database = Builder::new().create_with_backend(FileBackend::new(file)?)?;
        let transaction = database.begin_write()?;
        transaction.open_table(NODES)?;
        transaction.open_table(META)?.insert(FORMAT.0, FORMAT.1)?;
        transaction.commit()?;
        Ok(database.close()?)
    };
    fill().map_err(|e| cannot("write", &staged)(into_io(e)))?;
    fs::rename(&staged, path).map_err(cannot("rename", &staged))?;
    sync(dir)
}

fn put_marker(dir: &Path, marker: &Path) -> Result<(), OpenError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(marker)?;
        file.write_all(MARKER_TEXT.as_bytes())?;
        file.sync_all()
    };
    write().map_err(cannot("write", marker))?;
    sync(dir)
}

fn sync(dir: &Path) -> Result<(), OpenError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(cannot("sync", dir))
}

/// These mean that what was read makes no sense; every other one is the machine's.
fn is_about_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
    )
}

fn into_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn cannot(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}
