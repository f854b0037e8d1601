//! `.sys-config.json`, which the host writes: an untrusted hint where the gateways are.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use url::Url;

/// A real one has a few KB.
const MAX_BYTES: u64 = 1 << 20;

/// More than any platform has; each one can cost a time limit.
const MAX_GATEWAYS: usize = 16;

/// Name of the file in `dstack.host_shared_dir`.
const FILE: &str = ".sys-config.json";

/// What the file says that is of use here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SysConfig {
    /// `http` or `https`, in the order to try; never empty when read without an error.
    pub(crate) gateways: Vec<Url>,
}

/// Why the file names no gateway.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysConfigError {
    #[error("there is no {}. Mount the platform's folder there, or set dstack.gateway_domain or dstack.host_shared_dir", .0.display())]
    Missing(PathBuf),
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} is longer than {} KiB", .0.display(), MAX_BYTES >> 10)]
    TooLong(PathBuf),
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Only the place is told: the host may have linked any file here.
    #[error("{} is not JSON (line {line}, column {column})", path.display())]
    NotJson {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    #[error("{}: {why}. Set dstack.gateway_domain, or have the host name a gateway", path.display())]
    NoGateway { path: PathBuf, why: &'static str },
}

/// Reads the gateways from the file in `dir`. Never waits, whatever the host put there.
pub(crate) fn read(dir: &Path) -> Result<SysConfig, SysConfigError> {
    let path = dir.join(FILE);
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SysConfigError::Missing(path.clone()),
        _ => SysConfigError::Unreadable {
            path: path.clone(),
            source,
        },
    };
    // Without O_NONBLOCK the open of a FIFO would wait for its writer. What was opened is what is looked at.
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
    let file = file.open(&path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(SysConfigError::NotAFile(path));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(SysConfigError::TooLong(path));
    }
    parse(path, &bytes)
}

/// Reads the gateways from what the file at `path` holds.
pub(super) fn parse(path: PathBuf, json: &[u8]) -> Result<SysConfig, SysConfigError> {
    let value: Value = match serde_json::from_slice(json) {
        Ok(value) => value,
        Err(e) => {
            return Err(SysConfigError::NotJson {
                path,
                line: e.line(),
                column: e.column(),
            });
        }
    };
    match gateways(&value) {
        Ok(gateways) => Ok(SysConfig { gateways }),
        Err(why) => Err(SysConfigError::NoGateway { path, why }),
    }
}

/// The usable URLs, under the present or the former name; whatever else is wrong with the file is ignored.
fn gateways(config: &Value) -> Result<Vec<Url>, &'static str> {
    if !config.is_object() {
        return Err("it is not a JSON object");
    }
    let list = |name: &str| match config.get(name) {
        Some(Value::Array(urls)) => urls.clone(),
        Some(url @ Value::String(_)) => vec![url.clone()],
        _ => Vec::new(),
    };
    let named: Vec<Value> = ["gateway_urls", "tproxy_urls"]
        .into_iter()
        .flat_map(list)
        .collect();
    if named.is_empty() {
        return Err("gateway_urls is missing, empty or not a list");
    }
    let mut usable: Vec<Url> = Vec::new();
    for url in named
        .iter()
        .filter_map(|url| Url::parse(url.as_str()?.trim()).ok())
    {
        let ok = matches!(url.scheme(), "http" | "https") && url.host().is_some();
        if ok && !usable.contains(&url) {
            usable.push(url);
        }
    }
    usable.truncate(MAX_GATEWAYS);
    match usable.is_empty() {
        true => Err("no entry of gateway_urls is a URL such as https://gateway.example.org:9202"),
        false => Ok(usable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn read_text(text: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let config = read(dir.path()).map_err(|e| e.to_string())?;
        Ok(config.gateways.iter().map(Url::to_string).collect())
    }

    #[test]
    fn the_gateways_are_found_whatever_else_is_there() {
        let example = r#"{"kms_urls":["https://kms.example.org:12001"],"gateway_urls":["https://gateway.example.org:9202"],
                          "pccs_url":"","vm_config":"{\"cpu_count\":1}"}"#;
        assert_eq!(read_text(example).unwrap(), ["https://gateway.example.org:9202/"]);
        let old = r#"{"tproxy_urls":["https://a:1","",7,"ftp://x","https://a:1"," http://b:2 "],"kms_urls":{},"x":[[]]}"#;
        assert_eq!(read_text(old).unwrap(), ["https://a:1/", "http://b:2/"]);
        assert_eq!(
            read_text(r#"{"gateway_urls":"https://a:1"}"#).unwrap(),
            ["https://a:1/"]
        );
        let both = r#"{"gateway_urls":[],"tproxy_urls":["https://a:1"]}"#;
        assert_eq!(read_text(both).unwrap(), ["https://a:1/"]);
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_of_it_quoted() {
        for (text, message) in [
            ("", "is not JSON (line 1, column 0)"),
            ("SECRET", "is not JSON (line 1, column 1)"),
            ("[]", "it is not a JSON object"),
            ("{}", "gateway_urls is missing"),
            (
                r#"{"gateway_urls":7}"#,
                "gateway_urls is missing, empty or not a list",
            ),
            (
                r#"{"gateway_urls":["SECRET"]}"#,
                "no entry of gateway_urls is a URL",
            ),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(message) && !error.contains("SECRET"), "{error}");
        }
        assert!(read_text(b"\xff\xfe{}").unwrap_err().contains("is not JSON"));
        assert!(
            read_text(vec![b'['; 500_000])
                .unwrap_err()
                .contains("is not JSON"),
            "deep nesting"
        );
        assert!(
            read_text(vec![b' '; 10 << 20])
                .unwrap_err()
                .contains("is longer than 1024 KiB")
        );
    }

    #[test]
    fn other_kinds_of_files_do_not_hold_us_up() {
        let started = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(matches!(read(dir.path()), Err(SysConfigError::Missing(_))));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(dir.path()), Err(SysConfigError::NotAFile(_))));
        std::fs::remove_file(&path).unwrap();
        for target in ["/dev/zero", "/dev/null", "/", "/proc"] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            assert!(
                matches!(read(dir.path()), Err(SysConfigError::NotAFile(_))),
                "{target}"
            );
            std::fs::remove_file(&path).unwrap();
        }
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(matches!(read(dir.path()), Err(SysConfigError::Unreadable { .. })));
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    proptest::proptest! {
        /// Whatever it holds, reading ends in gateways or in a sentence.
        #[test]
        fn anything_can_be_in_it(junk in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
                                 entry in ".*") {
            let _ = read_text(&junk);
            let config = serde_json::json!({"gateway_urls": [entry]}).to_string();
            if let Ok(urls) = read_text(config) {
                proptest::prop_assert!(urls[0].starts_with("http://") || urls[0].starts_with("https://"));
            }
        }
    }
}
