//! A disk in memory that forgets what was not synced: bytes of a file until the file is, a name until its folder is.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use fastrand::Rng;
use nix::errno::Errno;

/// Index of a node; nodes are never removed.
type Id = usize;

#[derive(Debug, Clone)]
enum Node {
    File {
        mode: u32,
        bytes: Vec<u8>,
        /// What is on the medium for sure.
        synced: Option<Vec<u8>>,
    },
    Link(PathBuf),
    Dir {
        names: BTreeMap<String, Id>,
        synced: BTreeMap<String, Id>,
        /// Since the last sync, each whole or not at all.
        changes: Vec<Change>,
    },
}

/// Names that come (a node) or go together: a rename is two of them.
type Change = Vec<(String, Option<Id>)>;

/// What a power cut does to changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// They had all been written back.
    Nothing,
    /// None had.
    Everything,
    /// Some had, in any order.
    Some(u64),
}

#[derive(Debug, Clone)]
pub struct Disk {
    nodes: Vec<Node>,
}

impl Disk {
    /// With an empty folder at `root`, which is there for good.
    pub fn new(root: &Path) -> Self {
        let mut disk = Self { nodes: vec![empty()] };
        disk.make_dir(root).unwrap();
        disk.sync_everything();
        disk
    }

    pub fn read(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        match &self.nodes[self.find(path)?] {
            Node::File { bytes, .. } => Ok(bytes.clone()),
            Node::Dir { .. } => Err(Errno::EISDIR),
            Node::Link(_) => Err(Errno::ELOOP),
        }
    }

    pub fn mode(&self, path: &Path) -> Option<u32> {
        match &self.nodes[self.find(path).ok()?] {
            Node::File { mode, .. } => Some(*mode),
            _ => None,
        }
    }

    pub fn list(&self, path: &Path) -> Result<Vec<String>, Errno> {
        match self.find(path) {
            Ok(id) => match &self.nodes[id] {
                Node::Dir { names, .. } => Ok(names.keys().cloned().collect()),
                _ => Err(Errno::ENOTDIR),
            },
            Err(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, Errno> {
        match self.find(path) {
            Ok(id) => match &self.nodes[id] {
                Node::Link(target) => Ok(Some(target.clone())),
                _ => Ok(None),
            },
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn make_dir(&mut self, path: &Path) -> Result<(), Errno> {
        let mut at = PathBuf::from("/");
        for part in path.components().skip(1) {
            at.push(part);
            if self.find(&at).is_err() {
                let id = self.add(empty());
                self.change(&at, id)?;
            }
        }
        Ok(())
    }

    pub fn write_new(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Errno> {
        if self.find(path).is_ok() {
            return Err(Errno::EEXIST);
        }
        let id = self.add(Node::File {
            mode,
            bytes: bytes.to_vec(),
            synced: None,
        });
        self.change(path, id)
    }

    pub fn symlink(&mut self, target: &Path, link: &Path) -> Result<(), Errno> {
        if self.find(link).is_ok() {
            return Err(Errno::EEXIST);
        }
        let id = self.add(Node::Link(target.to_owned()));
        self.change(link, id)
    }

    pub fn sync(&mut self, path: &Path) -> Result<(), Errno> {
        let id = self.find(path)?;
        match &mut self.nodes[id] {
            Node::File { bytes, synced, .. } => *synced = Some(bytes.clone()),
            Node::Link(_) => return Err(Errno::ELOOP),
            Node::Dir {
                names,
                synced,
                changes,
            } => {
                synced.clone_from(names);
                changes.clear();
            }
        }
        Ok(())
    }

    /// Within one folder, which is all that apply does.
    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        assert_eq!(from.parent(), to.parent());
        let moved = self.find(from)?;
        if let Ok(there) = self.find(to)
            && let Node::Dir { names, .. } = &self.nodes[there]
            && !names.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        let (from, to) = (name(from), name(to));
        self.note(to.0, vec![(from.1, None), (to.1, Some(moved))])
    }

    /// Removes a whole tree, or only the first half of its entries.
    pub fn remove(&mut self, path: &Path, half: bool) -> Result<(), Errno> {
        let id = match self.find(path) {
            Ok(id) => id,
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Node::Dir { names, .. } = &self.nodes[id] {
            let all: Vec<_> = names.keys().map(|name| path.join(name)).collect();
            let some = if half { all.len() / 2 } else { all.len() };
            for inner in &all[..some] {
                self.remove(inner, false)?;
            }
        }
        if half {
            return Ok(());
        }
        let (dir, name) = name(path);
        self.note(dir, vec![(name, None)])
    }

    /// What is found after the power was cut.
    pub fn cut(&mut self, loss: Loss) {
        let mut random = match loss {
            Loss::Some(seed) => Some(Rng::with_seed(seed)),
            _ => None,
        };
        let mut keep = || match loss {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Some(_) => random.as_mut().is_some_and(Rng::bool),
        };
        for node in &mut self.nodes {
            match node {
                Node::File { bytes, synced, .. } => {
                    if synced.is_none() && !keep() {
                        bytes.clear();
                    }
                    *synced = Some(bytes.clone());
                }
                Node::Link(_) => {}
                Node::Dir {
                    names,
                    synced,
                    changes,
                } => {
                    let mut left = synced.clone();
                    for change in changes.drain(..) {
                        if keep() {
                            apply(&mut left, change);
                        }
                    }
                    *synced = left.clone();
                    *names = left;
                }
            }
        }
    }

    pub fn sync_everything(&mut self) {
        self.cut(Loss::Nothing);
    }

    /// Every path that is there, for messages.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from("/"), 0)];
        while let Some((path, id)) = open.pop() {
            if let Node::Dir { names, .. } = &self.nodes[id] {
                open.extend(names.iter().map(|(name, id)| (path.join(name), *id)));
            }
            found.push(path);
        }
        found.sort();
        found
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Links are followed on the way, not at the end.
    fn find(&self, path: &Path) -> Result<Id, Errno> {
        let parts: Vec<_> = path.components().collect();
        let mut id = 0;
        let mut at = PathBuf::new();
        for (index, part) in parts.iter().enumerate() {
            let Component::Normal(part) = part else {
                at.push(part);
                continue;
            };
            let Node::Dir { names, .. } = &self.nodes[id] else {
                return Err(Errno::ENOTDIR);
            };
            id = *names.get(&*part.to_string_lossy()).ok_or(Errno::ENOENT)?;
            if let Node::Link(target) = &self.nodes[id]
                && index + 1 < parts.len()
            {
                id = self.find(&at.join(target))?;
            }
            at.push(part);
        }
        Ok(id)
    }

    fn change(&mut self, path: &Path, id: Id) -> Result<(), Errno> {
        let (dir, name) = name(path);
        self.note(dir, vec![(name, Some(id))])
    }

    fn note(&mut self, dir: &Path, change: Change) -> Result<(), Errno> {
        let id = self.find(dir)?;
        let Node::Dir { names, changes, .. } = &mut self.nodes[id] else {
            return Err(Errno::ENOTDIR);
        };
        apply(names, change.clone());
        changes.push(change);
        Ok(())
    }
}

fn empty() -> Node {
    Node::Dir {
        names: BTreeMap::new(),
        synced: BTreeMap::new(),
        changes: Vec::new(),
    }
}

fn name(path: &Path) -> (&Path, String) {
    let name = path.file_name().expect("a name");
    (
        path.parent().expect("a folder"),
        name.to_string_lossy().into_owned(),
    )
}

fn apply(names: &mut BTreeMap<String, Id>, change: Change) {
    for (name, node) in change {
        match node {
            Some(id) => drop(names.insert(name, id)),
            None => drop(names.remove(&name)),
        }
    }
}

#[test]
fn only_what_was_synced_survives_for_sure() {
    let path = |name: &str| Path::new("/s").join(name);
    let mut disk = Disk::new(Path::new("/s"));
    disk.write_new(&path("old"), 0o600, b"old").unwrap();
    disk.sync(&path("old")).unwrap();
    disk.sync(Path::new("/s")).unwrap();
    disk.write_new(&path("new"), 0o600, b"new").unwrap();
    disk.rename(&path("new"), &path("old")).unwrap();
    assert_eq!(disk.read(&path("old")).unwrap(), b"new");

    let after = |loss| {
        let mut disk = disk.clone();
        disk.cut(loss);
        disk.read(&path("old")).unwrap()
    };
    assert_eq!(after(Loss::Nothing), b"new");
    assert_eq!(after(Loss::Everything), b"old");
    // Its name was written back, its bytes were not.
    assert!((0..64).any(|seed| after(Loss::Some(seed)) == b""));
}
