//! Hosts with a network of their own, several on one machine: namespaces with private interfaces, routes, firewall
//! and `/etc`, wired to a switch. There is no route from them to anywhere else.
//!
//! Nothing has a name outside: a namespace ends with the last process in it and the last of our handles on it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Gives a namespace a copy of `/etc`, because tailscaled rewrites `resolv.conf` there and leaves a backup, and a
/// `/sys` that shows its own interfaces.
const FURNISH: &str = r#"
set -e
mount --make-rprivate /
etc=$(mktemp -d)
mount -t tmpfs tmpfs "$etc"
cp -a /etc/. "$etc"
mount --move "$etc" /etc
rmdir "$etc"
mount -t sysfs sysfs /sys
hostname "$1"
ip link set lo up
echo ready
read -r _ || true
"#;

/// A network, its mounts and its host name.
pub struct Namespace {
    net: File,
    mount: File,
    uts: File,
}

impl Namespace {
    fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "network namespaces can be made by root only: run this test as root"
        );
        let mut founder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "sh", "-c", FURNISH, "founder", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare; `make setup` installs what is missing");
        let mut said = String::new();
        let stdout = founder.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut said).expect("its output");
        assert_eq!(said, "ready\n", "the namespace could not be made, see above");
        let handle = |kind| File::open(format!("/proc/{}/ns/{kind}", founder.id())).expect("a namespace");
        let namespace = Self {
            net: handle("net"),
            mount: handle("mnt"),
            uts: handle("uts"),
        };
        drop(founder.stdin.take());
        founder.wait().expect("the founder ends");
        namespace
    }

    /// For programs that join it by themselves.
    pub fn network(&self) -> &File {
        &self.net
    }

    /// `program`, to be run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", path(&self.net)))
            .arg(format!("--mount={}", path(&self.mount)))
            .arg(format!("--uts={}", path(&self.uts)))
            .arg(program);
        command
    }

    /// Runs a program inside to its end.
    pub async fn run(&self, words: &[&str]) -> Output {
        let mut command = self.command(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .expect("nsenter")
    }

    /// Runs it, and what it prints when it ends well.
    pub async fn tell(&self, words: &[&str]) -> Result<String, String> {
        let output = self.run(words).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!(
                "{}: {}{}",
                words.join(" "),
                text(&output.stdout),
                text(&output.stderr)
            )),
        }
    }

    pub async fn connect(&self, addr: SocketAddr) -> std::io::Result<TcpStream> {
        self.inside(TcpSocket::new_v4)?.connect(addr).await
    }

    pub fn listen(&self, addr: SocketAddr) -> std::io::Result<TcpListener> {
        let listener = self.inside(|| std::net::TcpListener::bind(addr))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    pub fn udp(&self, addr: SocketAddr) -> std::io::Result<UdpSocket> {
        let socket = self.inside(|| std::net::UdpSocket::bind(addr))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    /// Runs `make` on a thread in this network. A socket belongs for life to the network in which it was made.
    fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.net, CloneFlags::CLONE_NEWNET).expect("our own namespace");
                make()
            };
            scope.spawn(inside).join().expect("the thread ends well")
        })
    }
}

/// What joins the hosts. It has the address [`Switch::ADDRESS`] itself, for what all of them need.
pub struct Switch {
    inside: Arc<Namespace>,
    hosts: AtomicU8,
}

impl Switch {
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    pub async fn new() -> Self {
        let inside = Arc::new(Namespace::new("switch"));
        for words in [
            "ip link add switch type bridge",
            "ip link set switch up",
            "ip address add 10.77.0.1/24 dev switch",
        ] {
            must(&inside, words).await;
        }
        Self {
            inside,
            hosts: AtomicU8::new(10),
        }
    }

    /// The network in which it has its address.
    pub fn inside(&self) -> &Arc<Namespace> {
        &self.inside
    }

    /// Gives it one more address.
    pub async fn add_address(&self, ip: Ipv4Addr) {
        must(&self.inside, &format!("ip address add {ip}/24 dev switch")).await;
    }

    pub async fn host(&self, name: &str) -> Host {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        let ip = Ipv4Addr::new(10, 77, 0, number);
        let inside = Arc::new(Namespace::new(name));
        let port = format!("port{number}");
        let net = format!("/proc/{}/fd/{}", std::process::id(), inside.net.as_raw_fd());
        must(
            &self.inside,
            &format!("ip link add {port} type veth peer name eth0 netns {net}"),
        )
        .await;
        must(&self.inside, &format!("ip link set {port} master switch up")).await;
        must(&inside, &format!("ip address add {ip}/24 dev eth0")).await;
        must(&inside, "ip link set eth0 up").await;
        Host {
            name: name.to_owned(),
            ip,
            inside,
            port,
            switch: self.inside.clone(),
        }
    }
}

/// One host at the switch.
pub struct Host {
    pub name: String,
    pub ip: Ipv4Addr,
    pub inside: Arc<Namespace>,
    port: String,
    switch: Arc<Namespace>,
}

impl Host {
    /// Pulls its cable.
    pub async fn unplug(&self) {
        must(&self.switch, &format!("ip link set {} down", self.port)).await;
    }

    pub async fn plug(&self) {
        must(&self.switch, &format!("ip link set {} up", self.port)).await;
    }

    /// From now on it reaches the switch's own address, and no other host that is isolated too: as CVMs in different
    /// data centres reach the gateway only.
    pub async fn isolate(&self) {
        must(
            &self.switch,
            &format!("ip link set {} type bridge_slave isolated on", self.port),
        )
        .await;
    }

    /// What resolves its names until tailscaled takes over.
    pub async fn use_nameserver(&self, server: Ipv4Addr) {
        let script = format!("echo nameserver {server} > /etc/resolv.conf");
        self.inside
            .tell(&["sh", "-c", &script])
            .await
            .expect("a private resolv.conf");
    }

    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddrV4::new(self.ip, port).into()
    }
}

async fn must(inside: &Namespace, words: &str) {
    let words: Vec<_> = words.split(' ').collect();
    if let Err(why) = inside.tell(&words).await {
        panic!("{why}");
    }
}
