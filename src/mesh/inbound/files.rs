//! What a node tells the apps beside it: a few files below `/vpc/0/`.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Response, StatusCode};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::mesh::reply::{self, Body};

/// Nothing else in that folder is anybody's business.
const NAMES: [&str; 7] = [
    "shared_key",
    "server_url",
    "tailscale_ip",
    "actual_hostname",
    "tailscale_status.json",
    "instance_id",
    "vpc_server_app_id",
];

/// In bytes. The status of a large VPN has some hundreds of KiB.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Answers `/vpc/0/<name>`.
pub(super) async fn answer(method: &Method, folder: &Path, name: &str) -> Response<Body> {
    if !NAMES.contains(&name) {
        return reply::empty(StatusCode::NOT_FOUND);
    }
    if ![Method::GET, Method::HEAD].contains(method) {
        let mut answer = reply::empty(StatusCode::METHOD_NOT_ALLOWED);
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let (folder, file) = (folder.to_owned(), name.to_owned());
    let read = tokio::task::spawn_blocking(move || read(&folder, &file)).await;
    match read.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
        Ok(bytes) => {
            let kind = match name.ends_with(".json") {
                true => "application/json",
                false => "text/plain",
            };
            reply::own(StatusCode::OK, kind, bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => reply::empty(StatusCode::NOT_FOUND),
        Err(error) => {
            tracing::warn!(name, %error, "a file for local apps cannot be read");
            reply::empty(StatusCode::FORBIDDEN)
        }
    }
}

/// Only a plain file, and nothing that a link leads to: neither the file nor the two folders above it, which are ours.
/// Where the state directory is, others may have linked.
fn read(folder: &Path, name: &str) -> io::Result<Bytes> {
    use std::io::Read;

    let folder_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let state = folder.ancestors().nth(2).unwrap_or(folder);
    let mut place = open(state, folder_flags, Mode::empty())?;
    for part in folder.strip_prefix(state).unwrap_or(folder) {
        place = openat(&place, part, folder_flags | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(&place, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn only_the_files_that_are_meant_and_only_as_files() {
        let state = tempfile::tempdir().unwrap();
        let dir = &state.path().join("vpc/0");
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("server_url"), "https://vpn").unwrap();
        std::fs::write(dir.join("tailscale_status.json"), "{}").unwrap();
        std::fs::write(dir.join("other"), "x").unwrap();
        symlink(dir.join("other"), dir.join("shared_key")).unwrap();
        std::fs::create_dir(dir.join("instance_id")).unwrap();
        for (method, name, status) in [
            (Method::GET, "server_url", 200),
            (Method::HEAD, "server_url", 200),
            (Method::POST, "server_url", 405),
            (Method::GET, "tailscale_status.json", 200),
            (Method::GET, "tailscale_ip", 404),
            (Method::GET, "other", 404),
            (Method::GET, "", 404),
            (Method::GET, "../vpc/server_url", 404),
            (Method::GET, "%73erver_url", 404),
            (Method::GET, "shared_key", 403),
            (Method::GET, "instance_id", 403),
        ] {
            let answer = answer(&method, dir, name).await;
            assert_eq!(answer.status(), status, "{method} {name}");
        }
        // Nor where a folder of ours is a link; what is above them may be one.
        let elsewhere = tempfile::tempdir().unwrap();
        let linked = elsewhere.path().join("state");
        symlink(state.path(), &linked).unwrap();
        let served = async |folder: &Path| answer(&Method::GET, folder, "server_url").await.status();
        assert_eq!(served(&linked.join("vpc/0")).await, 200);
        for ours in ["vpc/0", "vpc"] {
            let (ours, away) = (state.path().join(ours), elsewhere.path().join("away"));
            std::fs::rename(&ours, &away).unwrap();
            symlink(&away, &ours).unwrap();
            assert_eq!(served(dir).await, 403, "{}", ours.display());
            std::fs::remove_file(&ours).unwrap();
            std::fs::rename(&away, &ours).unwrap();
        }
        assert_eq!(served(dir).await, 200);
    }
}
