//! Ports that no other test has, in this process or another.

use std::fs::{DirBuilder, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the kernel's ephemeral range, so that no outgoing connection takes one of them.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A TCP port on 127.0.0.1, ours until this is dropped.
pub struct Port {
    number: u16,
    /// Locked as long as it is open; the kernel lets go of it when we die.
    _lock: Option<File>,
}

impl Port {
    /// A port that is free now and that nobody else reserves meanwhile.
    pub fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // One folder a user: what root left there would be in everybody's way. That two users run tests at once is
        // left to the check that the port is free.
        let user = nix::unistd::geteuid();
        let dir = std::env::temp_dir().join(format!("dstack-vpc-test-ports-{user}"));
        let _ = DirBuilder::new().mode(0o700).create(&dir);
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (std::process::id().wrapping_mul(61).wrapping_add(step)) % COUNT;
            let number = number as u16;
            let file = dir.join(number.to_string());
            let Ok(lock) = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(file)
            else {
                continue;
            };
            let is_free = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok();
            if lock.try_lock().is_ok() && is_free() {
                return Self {
                    number,
                    _lock: Some(lock),
                };
            }
        }
        panic!("no free port between {FIRST} and {}", FIRST + COUNT);
    }

    /// This very port: for a host with a network of its own.
    pub fn fixed(number: u16) -> Self {
        Self { number, _lock: None }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    /// On 127.0.0.1.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.addr().fmt(f)
    }
}
