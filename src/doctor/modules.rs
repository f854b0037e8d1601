//! The netfilter modules that tailscaled's packet filter needs, and loading them from a folder.
//!
//! Some CVM images have a kernel without them. `tailscale.modules_dir` may hold the files, built for that very
//! kernel; `doctor` says how to load them, and `doctor --load-modules` does it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::utsname::uname;

use super::Finding;

/// Each with a function of it that a kernel that has it built in lists in `/proc/kallsyms`.
const NEEDED: [(&str, &str); 3] = [
    ("xt_mark", "mark_mt"),
    ("xt_connmark", "connmark_mt"),
    ("nf_tables", "nft_do_chain"),
];

/// A module that tailscaled needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    pub name: &'static str,
    /// In the kernel now, loaded or built in.
    pub present: bool,
    /// What has to be loaded for it, in this order; empty when the folder does not have it.
    pub load: Vec<PathBuf>,
}

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("tailscale.modules_dir is not set: there is no folder to load modules from")]
    NoFolder,
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: only root with CAP_SYS_MODULE may load modules: sudo dstack-vpc doctor --load-modules", .0.display())]
    NotPermitted(PathBuf),
    #[error("{}: it was not built for this kernel ({release})", path.display())]
    OtherKernel { path: PathBuf, release: String },
    #[error("{}: the kernel refuses it: {why}", path.display())]
    Refused { path: PathBuf, why: &'static str },
}

/// Which of the modules are there, and which files in `folder` would bring the others.
pub fn look(folder: Option<&Path>) -> Vec<Module> {
    let kernel = Kernel::look();
    NEEDED
        .iter()
        .map(|(name, symbol)| Module {
            name,
            present: kernel.has(name, symbol),
            load: folder.map(|folder| order(folder, name)).unwrap_or_default(),
        })
        .collect()
}

/// Loads what is missing, as root; returns the files that were loaded.
///
/// # Errors
/// The first one that could not be.
pub fn load(folder: Option<&Path>) -> Result<Vec<PathBuf>, LoadError> {
    if folder.is_none() {
        return Err(LoadError::NoFolder);
    }
    let mut loaded: Vec<PathBuf> = Vec::new();
    for path in look(folder)
        .iter()
        .filter(|module| !module.present)
        .flat_map(|module| &module.load)
    {
        if !loaded.contains(path) && insert(path)? {
            loaded.push(path.clone());
        }
    }
    Ok(loaded)
}

/// False: it is there already.
fn insert(path: &Path) -> Result<bool, LoadError> {
    use nix::errno::Errno;
    let file = File::open(path).map_err(|source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let path = path.to_owned();
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(Errno::EPERM) => Err(LoadError::NotPermitted(path)),
        Err(Errno::ENOEXEC) => Err(LoadError::OtherKernel {
            path,
            release: release(),
        }),
        Err(other) => Err(LoadError::Refused {
            path,
            why: other.desc(),
        }),
    }
}

/// With legacy iptables the first two are needed, with nftables the last.
pub(super) fn findings(modules: &[Module]) -> Vec<Finding> {
    let missing: Vec<&Module> = modules.iter().filter(|module| !module.present).collect();
    let names = |modules: &[&Module]| modules.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let has = |name| !missing.iter().any(|module| module.name == name);
    if has("nf_tables") || (has("xt_mark") && has("xt_connmark")) {
        let finding = match missing.is_empty() {
            true => Finding::ok("modules", "the kernel has xt_mark, xt_connmark and nf_tables"),
            false => Finding::note("modules", format!("the kernel lacks {}", names(&missing))).why(
                "tailscaled filters packets with nf_tables, or with xt_mark and xt_connmark: one of the two is there.",
            ),
        };
        return vec![finding];
    }
    // What the machine lets nobody see counts as missing.
    let finding = Finding::warning("modules", format!("the kernel does not show {}", names(&missing))).why(
        "tailscaled filters packets with xt_mark and xt_connmark, or with nf_tables. With none of them the node joins \
         without a packet filter: other nodes can send to every port, and forged packets are not dropped.",
    );
    let mut files: Vec<&PathBuf> = Vec::new();
    for file in missing.iter().flat_map(|module| &module.load) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    let finding = match files.is_empty() {
        false => {
            let insmod = |finding: Finding, file: &&PathBuf| finding.run(format!("insmod {}", file.display()));
            let finding = files.iter().fold(finding, insmod);
            finding.mend("or all of that at once:").run("sudo dstack-vpc doctor --load-modules")
        }
        true => finding
            .run("modprobe -a xt_mark xt_connmark")
            .mend(format!(
                "or put xt_mark.ko and xt_connmark.ko, built for {}, into a folder and name it in tailscale.modules_dir",
                release()
            )),
    };
    vec![finding.mend("or do without: node.tun = \"userspace\"")]
}

/// What the running kernel has.
struct Kernel {
    loaded: String,
    builtin: String,
    symbols: String,
}

impl Kernel {
    fn look() -> Self {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        Self {
            loaded: read("/proc/modules".to_owned()),
            builtin: read(format!("/lib/modules/{}/modules.builtin", release())),
            symbols: read("/proc/kallsyms".to_owned()),
        }
    }

    fn has(&self, name: &str, symbol: &str) -> bool {
        self.loaded
            .lines()
            .any(|line| line.split(' ').next() == Some(name))
            || self.builtin.lines().any(|line| file_is(line, name))
            || Path::new("/sys/module").join(name).exists()
            || self
                .symbols
                .lines()
                .any(|line| line.split_ascii_whitespace().nth(2) == Some(symbol))
    }
}

fn file_is(path: &str, module: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko")
        .is_some_and(|file| file.replace('-', "_") == module)
}

fn release() -> String {
    uname().map_or_else(
        |_| "this kernel".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// The files to load for `name`, those it depends on first; empty when the folder does not have it.
fn order(folder: &Path, name: &str) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let mut ordered = Vec::new();
    put(&files, name, &mut Vec::new(), &mut ordered);
    ordered
}

/// Puts what `name` depends on, then `name` itself, after what is `ordered` already.
fn put(files: &[PathBuf], name: &str, asked: &mut Vec<String>, ordered: &mut Vec<PathBuf>) {
    let file = files.iter().find(|path| file_is(&path.to_string_lossy(), name));
    if let (Some(file), false) = (file, asked.iter().any(|other| other == name)) {
        asked.push(name.to_owned());
        for dependency in dependencies(file) {
            put(files, &dependency, asked, ordered);
        }
        ordered.push(file.clone());
    }
}

/// What the file says of itself in its `.modinfo`: `depends=a,b`.
fn dependencies(module: &Path) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Ok(bytes) = fs::read(module) else {
        return Vec::new();
    };
    let Some(at) = bytes.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &bytes[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Mend, Severity};
    use super::*;

    fn module(folder: &Path, name: &str, depends: &str) -> PathBuf {
        let path = folder.join(format!("{name}.ko"));
        let text = format!("\x7fELF junk\0license=GPL\0depends={depends}\0name={name}\0");
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn modules_are_loaded_after_those_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let tables = module(dir.path(), "x_tables", "");
        let defrag = module(dir.path(), "nf_defrag_ipv4", "");
        let conntrack = module(dir.path(), "nf_conntrack", "nf_defrag_ipv4,libcrc32c");
        let connmark = module(dir.path(), "xt-connmark", "nf_conntrack,x_tables");
        let files = order(dir.path(), "xt_connmark");
        let at = |path: &PathBuf| files.iter().position(|file| file == path).unwrap();
        assert_eq!(files.len(), 4);
        assert!(
            at(&defrag) < at(&conntrack) && at(&conntrack) < at(&connmark) && at(&tables) < at(&connmark)
        );
        assert_eq!(order(dir.path(), "xt_mark"), Vec::<PathBuf>::new());

        module(dir.path(), "a", "b");
        module(dir.path(), "b", "a");
        assert_eq!(order(dir.path(), "a").len(), 2, "a circle has an end");
    }

    #[test]
    fn missing_modules_are_told_with_the_commands_in_order() {
        let missing = |load: Vec<PathBuf>| {
            ["xt_mark", "xt_connmark", "nf_tables"].map(|name| Module {
                name,
                present: false,
                load: load.clone(),
            })
        };
        let finding = findings(&missing(vec!["/m/x_tables.ko".into(), "/m/xt_mark.ko".into()])).remove(0);
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(
            finding.mend[..2],
            ["insmod /m/x_tables.ko", "insmod /m/xt_mark.ko"].map(|command| Mend::Run(command.to_owned()))
        );
        let modprobe = Mend::Run("modprobe -a xt_mark xt_connmark".to_owned());
        assert_eq!(findings(&missing(Vec::new()))[0].mend[0], modprobe);
        let mut one = missing(Vec::new());
        one[2].present = true;
        assert_eq!(findings(&one)[0].severity, Severity::Note);
    }

    #[test]
    fn the_running_kernel_is_looked_at_and_a_file_that_is_no_module_is_refused() {
        let kernel = Kernel {
            loaded: "xt_mark 16384 2 - Live 0x0\n".to_owned(),
            builtin: "kernel/net/netfilter/xt-connmark.ko\n".to_owned(),
            symbols: "ffffffff81f63250 T nft_do_chain\n".to_owned(),
        };
        for (name, symbol) in NEEDED {
            assert!(kernel.has(name, symbol), "{name}");
        }
        assert!(!kernel.has("no_such_module", "no_such_function"));

        assert!(matches!(load(None), Err(LoadError::NoFolder)));
        let dir = tempfile::tempdir().unwrap();
        let junk = module(dir.path(), "junk", "");
        assert!(insert(&junk).is_err(), "neither as root nor as anybody else");
        assert!(matches!(
            insert(&dir.path().join("none.ko")),
            Err(LoadError::Unreadable { .. })
        ));
    }
}
