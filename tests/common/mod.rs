//! Whole machines for tests and for the demo: `dstack-vpc up` with real supervisord and nginx, in a
//! temporary directory, on free ports.

pub mod agent;
pub mod attacks;
pub mod backend;
pub mod etcd;
pub mod gateway;
pub mod http;
mod launch;
pub mod load;
pub mod machine;
pub mod memory;
pub mod netns;
pub mod pair;
pub mod ports;
pub mod process;
pub mod secrets;
pub mod tls;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// Two apps that trust each other, and a third that nobody asked for.
pub const CLIENT_APP: &str = "c11e000000000000000000000000000000000001";
pub const SERVER_APP: &str = "5e44e40000000000000000000000000000000002";
pub const OTHER_APP: &str = "0740e40000000000000000000000000000000003";

/// The binary under test: cargo names it to tests; beside an example it lies one folder up.
pub fn binary() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_dstack-vpc") {
        Some(path) => PathBuf::from(path),
        None => {
            let me = std::env::current_exe().expect("own path");
            let target = me.parent().and_then(|dir| dir.parent()).expect("target folder");
            target.join("dstack-vpc")
        }
    }
}

/// A copy for other users: the build folder may lie where only its owner can go.
pub fn copy_binary(dir: &Path) -> PathBuf {
    let copy = dir.join("dstack-vpc");
    std::fs::copy(binary(), &copy).expect("a copy of the binary");
    copy
}

/// Runs a test on the runtime that all tests of a process share, so that machines and backends can be shared
/// too: they outlive the test that started them.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    });
    runtime.block_on(test)
}

/// Asks `probe` again and again until it answers. `None` when `limit` has passed.
pub async fn poll<T>(limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
