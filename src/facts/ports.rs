//! Ports: who holds a taken one, and how an open one is reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::process;

/// What listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, where this user may see it.
    pub process: Option<(u32, String)>,
    /// The address it listens on, which need not be the one that was asked for.
    pub listens: SocketAddr,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, command)) => write!(f, "{command} (pid {pid}, on {})", self.listens),
            None => write!(f, "a process of another user or container (on {})", self.listens),
        }
    }
}

/// Where to connect to for something of this machine that listens on `addr`: a wildcard is reached on loopback.
pub fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Who listens where `addr` would: on the same port, and the addresses overlap. TCP, this network namespace.
pub fn holder_of(addr: SocketAddr) -> Option<Holder> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let (listens, inode) = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(listener)
        .find(|(listens, _)| listens.port() == addr.port() && overlap(listens.ip(), addr.ip()))?;
    Some(Holder {
        process: owner_of(inode),
        listens,
    })
}

/// Address and inode of a row that is a listening socket. The columns are those of proc_net_tcp(5).
fn listener(row: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let columns: Vec<&str> = row.split_ascii_whitespace().collect();
    if *columns.get(3)? != LISTEN {
        return None;
    }
    let (ip, port) = columns.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, each in the byte order of the machine.
    let mut bytes = hex::decode(ip).ok()?;
    if cfg!(target_endian = "little") {
        bytes.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    }
    let ip = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?)),
    };
    Some((SocketAddr::new(ip, port), columns.get(9)?.parse().ok()?))
}

/// A socket on the unspecified address of IPv6 usually takes IPv4 too.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    let any_v6 = |ip: IpAddr| ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    a == b
        || any_v6(a)
        || any_v6(b)
        || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
}

fn owner_of(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let has_it = |pid: &u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        (fds.into_iter().flatten().flatten())
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    };
    let owners: Vec<u32> = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(has_it)
        .collect();
    let pid = eldest(&owners, |pid| process::look(pid).map(|it| it.parent))?;
    // The name only: arguments can be secrets.
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((pid, command.trim_end().to_owned()))
}

/// Of several that share a socket the one that the others come from: nginx's master, not a worker. Their numbers
/// do not tell it, since pids begin anew when they have reached the highest.
fn eldest(owners: &[u32], parent: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    let inherited = |pid: u32| parent(pid).is_some_and(|parent| owners.contains(&parent));
    (owners.iter().copied().find(|&pid| !inherited(pid))).or(owners.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_the_process_that_listens() {
        for (bound, asked) in [
            ("127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("::1", "::"),
            ("::", "127.0.0.1"),
        ] {
            let listener = TcpListener::bind((bound, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let asked = SocketAddr::new(asked.parse().unwrap(), port);
            let holder = holder_of(asked).unwrap_or_else(|| panic!("{bound} seen from {asked}"));
            assert_eq!(holder.process.as_ref().unwrap().0, std::process::id());
            assert_eq!(holder.listens, listener.local_addr().unwrap());
            assert!(
                holder
                    .to_string()
                    .contains(&format!("(pid {}", std::process::id()))
            );
        }
    }

    #[test]
    fn a_socket_is_that_of_the_process_which_handed_it_on_whatever_its_number() {
        let parents = |pid| {
            [(32_700, 1), (32_701, 32_700), (300, 32_700), (301, 300)]
                .into_iter()
                .find_map(|(child, parent)| (child == pid).then_some(parent))
        };
        assert_eq!(eldest(&[300, 301, 32_700, 32_701], parents), Some(32_700));
        assert_eq!(
            eldest(&[301, 300], parents),
            Some(300),
            "whose parent let go of it"
        );
        assert_eq!(eldest(&[9], parents), Some(9), "one that has just ended");
        assert_eq!(eldest(&[], parents), None);
    }

    #[test]
    fn what_does_not_listen_there_is_not_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(
            holder_of(SocketAddr::new("127.0.0.2".parse().unwrap(), addr.port())),
            None
        );
        let client = std::net::TcpStream::connect(addr).unwrap();
        assert_eq!(
            holder_of(client.local_addr().unwrap()),
            None,
            "connected is not listening"
        );
    }
}
