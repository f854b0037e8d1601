//! Where nginx listens, and which of its sockets no reload can exchange.
//!
//! A reload opens what is new before it closes what is old, and the kernel does not give out `127.0.0.1:80` while
//! `0.0.0.0:80` is open. And what has the same address is kept as it is, whatever `ipv6only` says now.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A socket as nginx opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Socket {
    addr: SocketAddr,
    /// `[::]` takes IPv4, too, unless it is told not to.
    only_ipv6: bool,
}

/// Those that an nginx.conf asks for. It may be anybody's text: what makes no sense is none.
pub(crate) fn sockets(conf: &[u8]) -> BTreeSet<Socket> {
    let lines = conf.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_start);
    let found = lines.filter_map(|line| {
        let words = std::str::from_utf8(line.strip_prefix(b"listen")?).ok()?;
        let (words, _) = words.strip_prefix([' ', '\t'])?.split_once(';')?;
        let (addr, options) = words.trim_start().split_once(' ').unwrap_or((words.trim(), ""));
        let addr = address(addr.trim_matches('"'))?;
        let only_ipv6 = addr.is_ipv6() && !options.contains("ipv6only=off");
        Some(Socket { addr, only_ipv6 })
    });
    // Of several that share an address only one says how it is opened.
    let all: BTreeSet<_> = found.collect();
    let shared = |it: &Socket| Socket {
        only_ipv6: false,
        ..*it
    };
    all.iter()
        .filter(|it| !it.only_ipv6 || !all.contains(&shared(it)))
        .copied()
        .collect()
}

fn address(text: &str) -> Option<SocketAddr> {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let port = text.strip_prefix("*:").unwrap_or(text);
    let all = |port| SocketAddr::new(any, port);
    text.parse().ok().or_else(|| port.parse().ok().map(all))
}

impl Socket {
    /// As it is opened where nobody says more.
    pub(crate) fn at(addr: SocketAddr) -> Self {
        let only_ipv6 = addr.is_ipv6();
        Self { addr, only_ipv6 }
    }

    /// Whether the kernel would not let both be open.
    fn excludes(&self, other: &Self) -> bool {
        let (a, b) = (self.addr.ip(), other.addr.ip());
        let takes_all = |it: &Self| it.addr.ip().is_unspecified() && !it.only_ipv6;
        self.addr.port() == other.addr.port()
            && match a.is_ipv4() == b.is_ipv4() {
                true => a == b || a.is_unspecified() || b.is_unspecified(),
                false => [self, other].iter().any(|it| it.addr.is_ipv6() && takes_all(it)),
            }
    }
}

/// Whether one of `old`, which is not wanted any more, is in the way of one of `new`.
pub(super) fn are_in_the_way(old: &BTreeSet<Socket>, new: &BTreeSet<Socket>) -> bool {
    let mut leaving = old.difference(new);
    leaving.any(|old| new.iter().any(|new| old.excludes(new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_in_the_way_of_what_the_kernel_would_not_open_beside_it() {
        for (old, new, is) in [
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("*:80", "127.0.0.1:80", true),
            ("80", "127.0.0.1:80", true),
            ("[::]:80 ipv6only=on", "[::1]:80", true),
            ("[::1]:80", "[::]:80 default_server", true),
            ("[::]:80 ipv6only=off", "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::]:80 ipv6only=off", true),
            ("[::]:80 default_server ipv6only=off", "[::]:80 ipv6only=on", true),
            ("[::]:80", "[::]:80 ipv6only=off", true),
            ("0.0.0.0:80", "0.0.0.0:81", false),
            ("0.0.0.0:80", "0.0.0.0:80 default_server", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("[::]:80 ipv6only=on", "0.0.0.0:80", false),
            ("[::]:80", "127.0.0.1:80", false),
            ("[::1]:80", "127.0.0.1:80", false),
            ("unix:/run/a", "127.0.0.1:80", false),
        ] {
            let conf = |listen| sockets(format!("server {{\n    listen {listen};\n}}\n").as_bytes());
            assert_eq!(are_in_the_way(&conf(old), &conf(new)), is, "{old} to {new}");
        }
        // It is said once how the socket of several servers is opened.
        let several = sockets(b"listen [::]:80 ipv6only=off;\nlisten [::]:80;\n# listen 1;");
        let one = sockets(b"listen [::]:80 ipv6only=off;");
        assert_eq!((several.len(), &several), (1, &one));
        // What stays is in nobody's way: nginx does not open what a wildcard of its own covers.
        let both = sockets(b"listen 0.0.0.0:80;\nlisten 127.0.0.1:80;");
        assert!(!are_in_the_way(&sockets(b"listen 0.0.0.0:80;"), &both));
    }
}
