//! Every section and key of `vpc.toml`: the one table that loading, environment variables, `explain`, the JSON
//! schema, the starter file and the reference page are made from.
//!
//! A key is `name: Type as Codec = default`, the default being TOML. A key that has to be given is
//! `name: Type as Codec => example`. The text above it is what users read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use url::Url;

use super::document::{Document, document, prefixed};
use super::numbers::{Count, FileVersion, Int, Patience, Switch, Workers};
use super::table::{Section, SectionInfo, section};
use super::types::{AbsolutePath, Folder, HostName, ProgramPath, UserName, WebPage};
use super::values::*;
use crate::names::{AppId, BackendName, DeviceName, DnsName, InstanceId, NodeName, NodeType};

section! {
    /// What this machine is and who may call it.
    pub(super) one "" Top {
        /// Schema version of this file.
        version: u16 as FileVersion = 1;
        /// What this machine is. Every machine is part of the mesh; a server also runs Headscale and the VPC
        /// API; a node also joins the VPN.
        role: Role = "mesh";
        /// App ids that may register with this server and use its API. Has to be given for server roles.
        allowed_apps: AllowedApps = "any";
    }
}

section! {
    /// The platform: the guest agent, the gateway, and what the host shares.
    pub one "dstack" Dstack {
        /// The guest agent, which issues certificates. "auto" takes `$DSTACK_SIMULATOR_ENDPOINT`, else the first
        /// known socket that exists.
        agent: AgentChoice = "auto";
        /// The gateway through which apps reach each other: its domain with port, or "fixed/host:port" to send
        /// every call to one address. "auto" asks the gateways named in `.sys-config.json`.
        gateway_domain: GatewayChoice = "auto";
        /// The folder that holds `.sys-config.json`, which names the gateways.
        host_shared_dir: PathBuf as AbsolutePath = "/dstack/.host-shared";
        /// How long one call to the guest agent may take. A KMS behind it takes seconds.
        agent_timeout: Duration = "30s";
    }
}

section! {
    /// The mTLS service mesh: how local apps call out, and how peers call in.
    pub one "mesh" Mesh {
        /// The outbound proxy, served by the daemon.
        client_listen: SocketAddr = "127.0.0.1:8091";
        /// The service that nginx asks whether a peer may call a backend, served by the daemon.
        auth_listen: SocketAddr = "127.0.0.1:8092";
        /// Plain HTTP from local apps to the outbound proxy, served by the front.
        http_listen: SocketAddr = "0.0.0.0:80";
        /// mTLS from peers to the backends, served by the front.
        https_listen: SocketAddr = "0.0.0.0:443";
        /// Who serves `http_listen` and `https_listen`: nginx, or the daemon itself, which then needs no nginx and no
        /// `auth_listen`.
        front: Front = "nginx";
        /// How long TCP and TLS to a peer may take together.
        connect_timeout: Duration = "10s";
        /// How long a peer may take from the end of a request to the head of its response.
        response_timeout: Duration = "60s";
        /// How long an unused connection to a peer is kept: less than 10m, after which the gateway ends it.
        idle_timeout: Duration = "5m";
        /// How long open requests may go on after the daemon was told to stop.
        drain_timeout: Duration = "30s";
        /// Whether each request to another app or to the guest agent is a line in the log: request id, target,
        /// method, path without its query, status or code of the failure, bytes, duration; with the built-in front
        /// each request from another app, too; and each session of a TCP backend or a forward.
        access_log: bool as Switch = false;
    }
}

section! {
    /// What one client, peer or target may take of the mesh. For most an edit holds from the next connection on.
    pub one "limits" Limits {
        /// How long a client may take for the head of a request, and be silent between two.
        header_timeout: Duration = "2m";
        /// How long a message that has begun may stand still, on either side, before its connection is cut.
        stall_timeout: Duration = "1h";
        /// How long nothing may move on a connection of a TCP backend or a forward before it is cut: at most 8m, because
        /// silence is noticed up to a quarter late and the gateway cuts after 10m.
        tcp_idle_timeout: Duration = "7m";
        /// How long a body is held back for a peer that says nothing to `Expect: 100-continue`.
        continue_timeout: Duration = "1s";
        /// The longest head of a request or a response, in KiB.
        header_kib: u16 as Int<16, 1024> = 128;
        /// The most headers of a request or a response. Between peers and backends nginx counts their bytes alone.
        headers: u16 as Int<16, 4096> = 100;
        /// Open connections of each listener of the daemon. What is more gets 503 at once, or is closed where the
        /// listener is for TCP. The limit of open files may allow fewer.
        connections: u16 as Int<16, 65535> = 16384;
        /// Requests at once on one HTTP/2 connection.
        streams: u16 as Int<1, 4096> = 256;
        /// Targets that are remembered, by each worker. What was not called for longest is forgotten.
        targets: u16 as Int<1, 65535> = 1024;
        /// Connections to peers that are kept for later, by each worker.
        idle_connections: u16 as Int<0, 65535> = 1024;
        /// How many of these to one target.
        idle_per_target: u16 as Int<0, 65535> = 256;
    }
}

impl Limits {
    /// The head of a message, in bytes.
    pub fn header_bytes(&self) -> u32 {
        u32::from(self.header_kib) * 1024
    }
}

section! {
    /// What peers reach: over HTTP through `mesh.https_listen`, over TCP through an address of its own. Any number of
    /// them; with none, nothing is reachable.
    pub many "backends" Backend {
        /// Names the backend in messages and in the rendered files.
        name: BackendName = "default";
        /// What peers speak: "http", or "tcp" for anything else. A TCP backend is served by the daemon, whoever serves
        /// the rest: mTLS up to it, and the bytes within go to the upstream as they are.
        protocol: Protocol = "http";
        /// Where peers reach a TCP backend. Has to be given for "tcp", and only there.
        listen: Option<SocketAddr> = "";
        /// The Host that selects this backend. "_" is every Host that no other backend names. TCP has no Host.
        server_name: Option<DnsName> as HostName = "_";
        /// Where the backend listens: host:port, or a list of them, balanced and with failover.
        upstream: Upstream => "127.0.0.1:8080";
        /// App ids that may call this backend. "any" is everyone with a valid certificate.
        allowed_apps: AllowedApps = "any";
    }
}

section! {
    /// Local TCP ports that lead to other apps over mTLS, for programs that cannot set a header, such as database
    /// drivers. Any number of them. Nothing is sent before the other side has proved to be that app.
    pub many "forwards" Forward {
        /// Names the forward in messages.
        name: BackendName = "default";
        /// Where local apps connect.
        listen: SocketAddr => "127.0.0.1:27018";
        /// The app that it leads to.
        target_app: AppId => "5e44e40000000000000000000000000000000002";
        /// The port there: the `listen` of its TCP backend.
        target_port: u16 as Int<1, 65535> = 443;
        /// Only this instance of the app. Empty: whichever the gateway picks.
        target_instance: Option<InstanceId> = "";
    }
}

section! {
    /// The VPC server (server roles).
    pub one "server" Server {
        /// The public URL of Headscale. "auto" is https://<own app id>-<port>.<gateway domain>.
        url: ServerUrl = "auto";
        /// Where Headscale listens.
        headscale_listen: SocketAddr = "0.0.0.0:8080";
        /// The VPC API, served by the daemon and published to peers as Host "vpc-server".
        api_listen: SocketAddr = "127.0.0.1:8000";
        /// How long the key that a registration hands out lets a node join.
        join_key_lifetime: Duration = "1h";
        /// Whether such a key lets more than one node join. Nodes need no such thing: each gets its own.
        join_key_reusable: bool as Switch = false;
        /// Requests an hour that one app may send to the API. 0 is any number.
        requests_per_hour: u32 as Count = 360000;
        /// Registrations an hour that one app may make. 0 is any number.
        registrations_per_hour: u32 as Count = 3600;
    }
}

section! {
    /// The VPN that the server runs (server roles).
    pub one "vpn" Vpn {
        /// The network that nodes get their addresses from. Tailscale clients handle networks within
        /// 100.64.0.0/10 best.
        prefix: Ipv4Net = "100.128.0.0/10";
        /// Nodes are named <node>.<base domain>. The server's own host may not lie within it.
        base_domain: DnsName = "dstack.internal";
        /// The resolvers that nodes use for every other name.
        nameservers: Vec<IpAddr> = ["1.1.1.1", "1.0.0.1"];
        /// Relays: "embedded" is Headscale's own, "public" the public map, "auto" both where the map can be
        /// had; or the path of a map.
        derp: Derp = "auto";
        /// Where the public map is fetched, once a day, when `derp` is "auto" or "public". Tailscale's by default.
        derp_map_url: Url as WebPage = "https://controlplane.tailscale.com/derpmap/default";
    }
}

section! {
    /// This machine in the VPN (node roles).
    pub one "node" Node {
        /// The host name in the VPN. Has to be given for node roles.
        name: Option<NodeName> = "";
        /// What this node is for others to discover, such as "mongodb". Empty: it is not announced.
        node_type "type": Option<NodeType> = "";
        /// The app id of the VPC server. "self" is this app's own.
        server_app_id: ServerAppId = "self";
        /// How packets travel: through a TUN device, in userspace, or "auto": a device where the machine
        /// allows one.
        tun: Tun = "auto";
        /// Whether this machine resolves names through the VPN, which makes <node>.<base domain> known to it.
        accept_dns: bool as Switch = true;
        /// How often the node tells the server that it lives: several times within `silence`.
        heartbeat: Duration = "30s";
        /// Silent for longer than this, the node is no longer discovered.
        silence: Duration = "5m";
    }
}

section! {
    /// Where the server keeps what it knows of nodes (server roles).
    pub one "registry" Registry {
        /// In the state directory, or in etcd.
        store: Store = "embedded";
        /// The members of etcd, e.g. ["http://10.0.0.1:2379"].
        endpoints: Vec<Url> = [];
        /// A node that has not announced itself for this long is no longer discovered, unless it named a time of its
        /// own. "0s" is never.
        silence: Duration as Patience = "24h";
        /// A node that has not announced itself for this long is forgotten: longer than `silence`. "0s" is never.
        forget_after: Duration as Patience = "30d";
    }
}

section! {
    /// This machine's TLS certificate.
    pub one "identity" IdentityPolicy {
        /// How long a certificate is asked to be valid. Older guest agents decide themselves.
        lifetime: Duration = "30d";
        /// A certificate is renewed when less than this is left: shorter than `lifetime`.
        renew_before: Duration = "10d";
    }
}

section! {
    /// nginx, which serves the front.
    pub one "nginx" Nginx {
        /// The program.
        program: PathBuf as ProgramPath = "nginx";
        /// The user of the workers when started as root. "auto" is the first of nginx, www-data and nobody.
        user: Option<String> as UserName = "auto";
        /// How many workers. "auto" is one for each processor.
        workers: u16 as Workers = "auto";
        /// How long what was open at a reload may go on, a WebSocket for one. The gateway ends every connection after
        /// 5 hours.
        drain_timeout: Duration = "5h";
    }
}

section! {
    /// supervisord, which runs the programs.
    pub one "supervisor" Supervisor {
        /// The program.
        program: PathBuf as ProgramPath = "supervisord";
        /// Where the output of the programs goes: to supervisord's own, or to files in the state directory.
        output: ChildOutput = "stdout";
    }
}

section! {
    /// Headscale, the VPN's control plane (server roles).
    pub one "headscale" Headscale {
        /// The program.
        program: PathBuf as ProgramPath = "headscale";
        /// How long the daemon's own key for Headscale's API is valid. It is renewed in time.
        api_key_lifetime: Duration = "90d";
    }
}

section! {
    /// Tailscale, the VPN's client (node roles).
    pub one "tailscale" Tailscale {
        /// The daemon.
        program: PathBuf as ProgramPath = "tailscaled";
        /// The command line that talks to it.
        client: PathBuf as ProgramPath = "tailscale";
        /// The UDP port it listens on. 0 is any.
        port: u16 as Int<0, 65535> = 0;
        /// The name of the TUN device.
        device: DeviceName = "tailscale0";
        /// With userspace networking: where local apps find a SOCKS5 and HTTP proxy into the VPN. Empty: none.
        proxy_listen: Option<SocketAddr> = "";
        /// A folder of kernel modules (xt_mark.ko, xt_connmark.ko) for machines that lack them. Empty: none.
        modules_dir: Option<PathBuf> as Folder = "";
    }
}

section! {
    /// How the machine is kept as this file says.
    pub one "reconcile" Reconcile {
        /// How often to look for changes that nothing told of: 1s or longer.
        interval: Duration = "30s";
        /// How long to wait for more after a change of the file; at most 1 ms where it was replaced in one piece (renamed).
        debounce: Duration = "50ms";
        /// How many generations are kept to roll back to.
        keep: u16 as Int<1, 1000> = 10;
        /// How long a new configuration may take to show that it serves, before it is rolled back.
        probe_timeout: Duration = "10s";
    }
}

section! {
    /// What Prometheus can read of the daemon: docs/metrics.md lists it.
    pub one "metrics" Metrics {
        /// Where `GET /metrics` is answered, e.g. "127.0.0.1:9100". Empty: nowhere.
        listen: Option<SocketAddr> = "";
    }
}

section! {
    /// The status page: what `dstack-vpc status`, `nodes` and `history` say, and how the mesh does, for a browser.
    pub one "status" StatusPage {
        /// Where it is served, e.g. "127.0.0.1:9180". Empty: nowhere.
        listen: Option<SocketAddr> = "";
        /// Whether others than this machine may reach it: without this, `listen` has to be a loopback address. Nobody is
        /// asked who they are.
        public: bool as Switch = false;
        /// Names under which it may be asked for, beside IP addresses and localhost. A browser that was led here under
        /// any other name is refused.
        names: Vec<DnsName> = [];
    }
}

section! {
    /// The log of the daemon, on stderr.
    pub one "log" Log {
        /// The least important messages that are written.
        level: LogLevel = "info";
        /// "auto" is text on a terminal and JSON otherwise.
        format: LogFormat = "auto";
    }
}

document! {
    dstack: Dstack,
    mesh: Mesh,
    limits: Limits,
    [[backends]]
    [[forwards]]
    server: Server,
    vpn: Vpn,
    node: Node,
    registry: Registry,
    identity: IdentityPolicy,
    nginx: Nginx,
    supervisor: Supervisor,
    headscale: Headscale,
    tailscale: Tailscale,
    reconcile: Reconcile,
    metrics: Metrics,
    status: StatusPage,
    log: Log,
}

impl Default for Spec {
    /// What an empty file and an empty environment give.
    fn default() -> Self {
        super::load(None, &Default::default())
            .expect("the defaults of this file can be read: tested")
            .spec
    }
}
