//! The types of single keys, as far as they are read from one string.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use url::Url;

use super::codec::{choice, text};
use super::parse::*;
use super::suggest::did_you_mean;
use super::values::*;
use crate::names::{AppId, BackendName, DeviceName, DnsName, HostPort, InstanceId, NodeName, NodeType};

choice! {
    Role {
        "mesh" => Role { server: false, node: false },
        "server" => Role { server: true, node: false },
        "node" => Role { server: false, node: true },
        "server+node" => Role { server: true, node: true },
    }
    Front {
        "nginx" => Front::Nginx,
        "builtin" => Front::Builtin,
    }
    Protocol {
        "http" => Protocol::Http,
        "tcp" => Protocol::Tcp,
    }
    Tun {
        "auto" => Tun::Auto,
        "device" => Tun::Device,
        "userspace" => Tun::Userspace,
    }
    Store {
        "embedded" => Store::Embedded,
        "etcd" => Store::Etcd,
    }
    ChildOutput {
        "stdout" => ChildOutput::Stdout,
        "files" => ChildOutput::Files,
    }
    LogLevel {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
    }
    LogFormat {
        "auto" => LogFormat::Auto,
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
    }
}

/// `server_name`: a DNS name, or `_` for every Host that no other backend names.
pub(super) struct HostName;

/// A URL with a path.
pub(super) struct WebPage;

/// The user of nginx's workers.
pub(super) struct UserName;

/// An absolute path.
pub(super) struct AbsolutePath;

/// An absolute path, or none.
pub(super) struct Folder;

/// A program: its name, found on `PATH`, or its absolute path.
pub(super) struct ProgramPath;

const HOST: &str = r"([0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?|\[[0-9A-Fa-f:.]+\])";

text! {
    AppId => AppId {
        expects: "an app id (40 hex digits)",
        pattern: "^[0-9a-fA-F]{40}$",
        parse: |s| s.parse().map_err(|_| {
            let bare = s.trim().trim_start_matches("0x");
            match bare.parse::<AppId>() {
                Ok(id) => Some(format!("did you mean `{id}`?")),
                Err(_) if s.len() >= 20 && s.bytes().all(|b| b.is_ascii_hexdigit()) => Some(format!("this has {} digits", s.len())),
                Err(_) => None,
            }
        }),
        show: ToString::to_string,
    }

    Option<InstanceId> => Option<InstanceId> {
        expects: "an instance id (40 hex digits), or nothing",
        pattern: "^$|^[0-9a-fA-F]{40}$",
        parse: |s| unless("", s, |s| s.parse().map_err(|_| None)),
        show: |id| id.map_or(String::new(), |id| id.to_string()),
    }

    SocketAddr => SocketAddr {
        expects: "an IP address and port, such as 127.0.0.1:8091",
        pattern: r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
        parse: parse_listen,
        show: ToString::to_string,
    }

    Option<SocketAddr> => Option<SocketAddr> {
        expects: "nothing, or an IP address and port, such as 127.0.0.1:1055",
        pattern: r"^$|^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
        parse: |s| unless("", s, parse_listen),
        show: |addr| addr.map_or(String::new(), |addr| addr.to_string()),
    }

    HostPort => HostPort {
        expects: "host:port, such as 127.0.0.1:8080, [::1]:8080 or db.local:8080",
        pattern: format!("^{HOST}:[0-9]{{1,5}}$"),
        parse: |s| s.parse().map_err(|_| host_port_help(s)),
        show: ToString::to_string,
    }

    IpAddr => IpAddr {
        expects: "an IP address",
        pattern: "^[0-9A-Fa-f:.]+$",
        parse: |s| s.parse().map_err(|_| None),
        show: ToString::to_string,
    }

    Ipv4Net => Ipv4Net {
        expects: "an IPv4 network, /29 or larger, such as 100.64.0.0/16",
        pattern: "^[0-9.]+/[0-9]{1,2}$",
        parse: |s| match s.parse::<Ipv4Net>() {
            Ok(net) if net.addr() == net.network() => Ok(net),
            Ok(net) => Err(Some(format!("did you mean the network `{}`?", net.trunc()))),
            Err(_) => Err(s.parse::<Ipv4Addr>().ok().map(|_| format!("add the length of the network: `{s}/16`"))),
        },
        show: ToString::to_string,
    }

    DnsName => DnsName {
        expects: "a DNS name, such as dstack.internal",
        pattern: "^[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?$",
        parse: |s| s.parse().map_err(|_| underscore_help(s)),
        show: ToString::to_string,
    }

    HostName => Option<DnsName> {
        expects: "\"_\" (every other Host) or a DNS name",
        pattern: "^(_|[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?)$",
        parse: |s| match s {
            "_" => Ok(None),
            s if s.starts_with("*.") => Err(Some("wildcards are not supported; name each Host in a backend of its own, or use \"_\"".into())),
            s => s.parse().map(Some).map_err(|_| underscore_help(s)),
        },
        show: |name| name.as_ref().map_or("_".into(), ToString::to_string),
    }

    BackendName => BackendName {
        expects: "a name (letters, digits and inner hyphens, at most 63)",
        pattern: LABEL,
        parse: |s| s.parse().map_err(|_| underscore_help(s)),
        show: ToString::to_string,
    }

    Option<NodeName> => Option<NodeName> {
        expects: "a host name (letters, digits and inner hyphens, at most 63)",
        pattern: format!("^$|{LABEL}"),
        parse: |s| unless("", s, |s| s.parse().map_err(|_| underscore_help(s))),
        show: |name| name.as_ref().map_or(String::new(), ToString::to_string),
    }

    Option<NodeType> => Option<NodeType> {
        expects: "a node type (letters, digits, '-', '_' and '.', at most 63), or nothing",
        pattern: "^$|^[0-9A-Za-z][0-9A-Za-z_.-]{0,62}$",
        parse: |s| unless("", s, |s| s.parse().map_err(|_| None)),
        show: |name| name.as_ref().map_or(String::new(), ToString::to_string),
    }

    UserName => Option<String> {
        expects: "\"auto\" or a user's name",
        pattern: "^[a-z_][a-z0-9_-]{0,31}$",
        parse: |s| unless("auto", s, |s| {
            let first = s.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
            let rest = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
            if first && rest && s.len() <= 32 { Ok(s.to_owned()) } else { Err(None) }
        }),
        show: |name| name.clone().unwrap_or("auto".into()),
    }

    AgentChoice => AgentChoice {
        expects: "\"auto\", \"unix:/path/to/dstack.sock\" or \"http://host:port\"",
        pattern: format!("^(auto|unix:/.+|http://{HOST}:[0-9]{{1,5}}/?)$"),
        parse: parse_agent,
        show: |choice| match choice {
            AgentChoice::Auto => "auto".into(),
            AgentChoice::At(addr) => addr.to_string(),
        },
    }

    GatewayChoice => GatewayChoice {
        expects: "\"auto\", a domain with or without port (\"apps.example.com:443\"), or \"fixed/host:port\"",
        pattern: format!("^(auto|(fixed/)?{HOST}(:[0-9]{{1,5}})?)$"),
        parse: parse_gateway,
        show: |choice| match choice {
            GatewayChoice::Auto => "auto".into(),
            GatewayChoice::Is(gateway) => gateway.to_string(),
        },
    }

    ServerUrl => ServerUrl {
        expects: "\"auto\" or a URL of a host, such as https://vpn.example.com",
        pattern: format!("^(auto|https?://{HOST}(:[0-9]{{1,5}})?/?)$"),
        parse: |s| if s == "auto" { Ok(ServerUrl::Auto) } else { parse_url(s, "https").map(ServerUrl::Is) },
        show: |url| match url {
            ServerUrl::Auto => "auto".into(),
            ServerUrl::Is(url) => show_url(url),
        },
    }

    Url => Url {
        expects: "a URL of a host and port, such as http://10.0.0.1:2379",
        pattern: format!("^https?://{HOST}(:[0-9]{{1,5}})?/?$"),
        parse: |s| parse_url(s, "http"),
        show: show_url,
    }

    WebPage => Url {
        expects: "a URL, such as https://derp.example.com/map.json",
        pattern: format!("^https?://{HOST}(:[0-9]{{1,5}})?(/[!-~]*)?$"),
        parse: parse_page,
        show: ToString::to_string,
    }

    Derp => Derp {
        expects: "\"auto\", \"embedded\", \"public\" or the absolute path of a DERP map",
        pattern: "^(auto|embedded|public|/.+)$",
        parse: |s| match s {
            "auto" => Ok(Derp::Auto),
            "embedded" => Ok(Derp::Embedded),
            "public" => Ok(Derp::Public),
            s => match absolute(s) {
                Ok(path) => Ok(Derp::File(path)),
                Err(help) => Err(did_you_mean(s, ["auto", "embedded", "public"]).or(help)),
            },
        },
        show: |derp| match derp {
            Derp::Auto => "auto".into(),
            Derp::Embedded => "embedded".into(),
            Derp::Public => "public".into(),
            Derp::File(path) => path.display().to_string(),
        },
    }

    ServerAppId => ServerAppId {
        expects: "\"self\" or an app id (40 hex digits)",
        pattern: "^(self|[0-9a-fA-F]{40})$",
        parse: |s| match s {
            "self" => Ok(ServerAppId::SelfApp),
            s => s.parse().map(ServerAppId::Is).map_err(|_| did_you_mean(s, ["self"])),
        },
        show: |id| match id {
            ServerAppId::SelfApp => "self".into(),
            ServerAppId::Is(id) => id.to_string(),
        },
    }

    AbsolutePath => PathBuf {
        expects: "an absolute path",
        pattern: "^/.*$",
        parse: absolute,
        show: |path| path.display().to_string(),
    }

    Folder => Option<PathBuf> {
        expects: "an absolute path, or nothing",
        pattern: "^$|^/.*$",
        parse: |s| unless("", s, absolute),
        show: |path| path.as_ref().map_or(String::new(), |path| path.display().to_string()),
    }

    DeviceName => DeviceName {
        expects: "the name of a network device (letters, digits, '-', '_' and '.', at most 15)",
        pattern: "^[0-9A-Za-z][0-9A-Za-z_.-]{0,14}$",
        parse: |s| s.parse().map_err(|_| None),
        show: ToString::to_string,
    }

    ProgramPath => PathBuf {
        expects: "the name of a program, or its absolute path",
        pattern: "^(/.+|[^/]+)$",
        parse: |s| if s.contains('/') { absolute(s) } else { printable(s) },
        show: |path| path.display().to_string(),
    }
}

const LABEL: &str = "^[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?$";
