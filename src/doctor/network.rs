//! The VPN's addresses beside those of this machine's networks, and the ports that this role takes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;

use super::{Finding, Patient};
use crate::desired::with_device;
use crate::facts::ports::{Holder, holder_of};
use crate::names::SHARED_SPACE;
use crate::spec::{Front, ServerAppId, Spec};

/// Ports below this are for root, unless the machine says otherwise.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// A network that this machine is in or has a route to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Local {
    device: String,
    net: Ipv4Net,
}

pub(super) fn findings(patient: &Patient<'_>) -> Vec<Finding> {
    let Spec { role, vpn, .. } = patient.spec;
    let mut findings = Vec::new();
    if role.server || role.node {
        let locals = locals(patient.spec.tailscale.device.as_str());
        let with_device = role.node && with_device(patient.spec, &patient.seen.facts);
        // Only the server knows the prefix; what a node's tailscaled takes for the VPN is known in any case.
        let prefix = role.server.then_some(vpn.prefix);
        findings.extend(prefix.and_then(|prefix| outside(prefix, &locals)));
        if role.node && !with_device {
            let announced = patient.spec.node.node_type.is_some();
            findings.extend(own_net(patient).and_then(|net| unreached(net, announced, &locals)));
        }
        findings.extend(overlaps(prefix, with_device, &locals));
    }
    findings.extend(ports(patient));
    findings
}

/// How clients treat other addresses was read in, and seen with, Tailscale 1.94 to 1.100.
fn outside(prefix: Ipv4Net, locals: &[Local]) -> Option<Finding> {
    if SHARED_SPACE.contains(&prefix) {
        return None;
    }
    let free = free_part(locals).map_or("100.64.0.0/16".to_owned(), |net| net.to_string());
    Some(
        Finding::note("vpn-prefix", format!("vpn.prefix {prefix} lies outside {SHARED_SPACE}"))
            .why(
                "It works: nodes of this program ask for routes to it. But other Tailscale clients reach such addresses only \
                 with --accept-routes, hide them in `tailscale status`, and do not drop forged packets from this range; nodes \
                 without a TUN device are not reached there; and in a policy of Headscale, \"*\" does not mean it from 0.29 on.",
            )
            .mend(format!("for a new VPN: prefix = \"{free}\" in [vpn]; changing it later renumbers the nodes")),
    )
}

/// Where this node's address in the VPN is or will be; `None`: only the server knows.
fn own_net(patient: &Patient<'_>) -> Option<Ipv4Net> {
    let Spec { role, vpn, node, .. } = patient.spec;
    let joined = patient.daemon.and_then(|status| status.node.as_ref()?.address);
    let of_ours = role.server && node.server_app_id == ServerAppId::SelfApp;
    joined.map(Ipv4Net::from).or(of_ours.then_some(vpn.prefix))
}

/// In userspace tailscaled takes connections to [`SHARED_SPACE`] for its own and hands them to 127.0.0.1. Those to any
/// other address of its own it tries to pass on, to an address that no device here has (`acceptTCP` in its netstack.go).
fn unreached(own: Ipv4Net, announced: bool, locals: &[Local]) -> Option<Finding> {
    if SHARED_SPACE.contains(&own) {
        return None;
    }
    let free = free_part(locals).map_or("100.64.0.0/16".to_owned(), |net| net.to_string());
    let own = match own.prefix_len() {
        32 => format!("this node's address {}", own.addr()),
        _ => format!("vpn.prefix {own}"),
    };
    Some(
        Finding::error(
            "vpn-reach",
            format!("no other node reaches this one: it has no TUN device, and {own} lies outside {SHARED_SPACE}"),
        )
        .why(
            "Without a device tailscaled hands what arrives to 127.0.0.1 for addresses within that range only. This node \
             reaches the others all the same.",
        )
        // Whoever is not looked for is not missed.
        .milder(!announced)
        .mend("a device, in the app's compose file:  devices: [\"/dev/net/tun\"], cap_add: [NET_ADMIN]")
        .run("dstack-vpc explain node.tun   # \"auto\" or \"device\" takes it")
        .mend(format!(
            "or for a new VPN, on its server: prefix = \"{free}\" in [vpn]; changing it later renumbers the nodes"
        )),
    )
}

fn overlaps(prefix: Option<Ipv4Net>, with_device: bool, locals: &[Local]) -> Vec<Finding> {
    let meets = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    let mut findings = Vec::new();
    for Local { device, net } in locals {
        let (vpn, why) = if prefix.is_some_and(|prefix| meets(&prefix, net)) {
            (
                format!("vpn.prefix {}", prefix.unwrap_or(SHARED_SPACE)),
                "A node there cannot tell a neighbour from a node of the VPN with the same address: one of the two is not \
                 reached.",
            )
        } else if with_device && meets(&SHARED_SPACE, net) {
            (
                format!("the addresses {SHARED_SPACE} of VPNs"),
                "tailscaled drops what comes from such an address by another way than its own device.",
            )
        } else {
            continue;
        };
        let finding = Finding::warning(
            "vpn-prefix",
            format!("{vpn} and the network {net} of {device} overlap"),
        )
        .why(why);
        findings.push(match (prefix, free_part(locals)) {
            (Some(_), Some(free)) => finding.mend(format!(
                "prefix = \"{free}\" in [vpn], before the first node joins"
            )),
            _ => finding.mend("node.tun = \"userspace\", or another address range for that network"),
        });
    }
    findings
}

/// The first /16 of the shared space that no local network touches.
fn free_part(locals: &[Local]) -> Option<Ipv4Net> {
    let meets = |net: &Ipv4Net| {
        locals
            .iter()
            .any(|local| local.net.contains(net) || net.contains(&local.net))
    };
    SHARED_SPACE.subnets(16).ok()?.find(|net| !meets(net))
}

/// Of every device but loopback and the VPN's own.
fn locals(vpn_device: &str) -> Vec<Local> {
    let mut found: Vec<Local> = Vec::new();
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let routes = table.lines().skip(1).filter_map(route);
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|it| {
        let address = it.address?.as_sockaddr_in()?.ip();
        let mask = it.netmask?.as_sockaddr_in()?.ip();
        let net = Ipv4Net::with_netmask(address, mask).ok()?.trunc();
        Some(Local {
            device: it.interface_name,
            net,
        })
    });
    for local in addresses.chain(routes) {
        let counts =
            local.device != vpn_device && !local.net.addr().is_loopback() && local.net.prefix_len() > 0;
        if counts && !found.contains(&local) {
            found.push(local);
        }
    }
    found
}

/// A row of /proc/net/route; addresses are words in the byte order of the machine.
fn route(row: &str) -> Option<Local> {
    let columns: Vec<&str> = row.split_ascii_whitespace().collect();
    let address = |at: usize| {
        let word = u32::from_str_radix(columns.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(word.to_ne_bytes()))
    };
    Some(Local {
        device: (*columns.first()?).to_owned(),
        net: Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?.trunc(),
    })
}

fn ports(patient: &Patient<'_>) -> Vec<Finding> {
    let front = match patient.spec.mesh.front {
        Front::Nginx => "nginx",
        Front::Builtin => "dstack-vpc",
    };
    let mut findings = Vec::new();
    let with_device = with_device(patient.spec, &patient.seen.facts);
    for (key, addr) in patient.spec.listeners() {
        let program = match &*key {
            "mesh.http_listen" | "mesh.https_listen" => front,
            "server.headscale_listen" => "headscale",
            "tailscale.proxy_listen" if with_device => continue,
            "tailscale.proxy_listen" => "tailscaled",
            _ => "dstack-vpc",
        };
        let Some(holder) = holder_of(addr) else {
            findings.extend(privileged(patient, &key, addr));
            continue;
        };
        let ours = match &holder.process {
            Some((pid, _)) => patient.is_ours(*pid),
            // Whose it is cannot be seen: of a running machine it is most likely its own.
            None => {
                patient.stranger
                    || patient.daemon.is_some() && (program == "dstack-vpc" || patient.runs(program))
            }
        };
        if ours {
            findings.push(Finding::ok(
                "port",
                format!("{key} {addr} is served by {program}"),
            ));
        } else {
            findings.push(taken(&key, addr, &holder));
        }
    }
    findings
}

fn taken(key: &str, addr: SocketAddr, holder: &Holder) -> Finding {
    let finding = Finding::error("port", format!("{key} {addr} is taken by {holder}"))
        .why("Two programs cannot listen there: nothing goes live until one of them moves.");
    let finding = match &holder.process {
        Some((pid, _)) => finding.run(format!("kill {pid}   # ends it")),
        None => finding.run(format!("sudo ss -ltnp 'sport = :{}'   # finds it", addr.port())),
    };
    finding
        .mend("or listen elsewhere; where it is said:")
        .run(format!("dstack-vpc explain {key}"))
}

/// A free port that this user may not take.
fn privileged(patient: &Patient<'_>, key: &str, addr: SocketAddr) -> Option<Finding> {
    let first: u16 = std::fs::read_to_string(UNPRIVILEGED).ok()?.trim().parse().ok()?;
    let may =
        patient.seen.facts.host.root || patient.stranger || patient.daemon.is_some() || addr.port() >= first;
    let elsewhere = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), addr.port().saturating_add(8000));
    (!may).then(|| {
        Finding::warning(
            "port",
            format!("{key} {addr}: only root may listen below port {first}"),
        )
        .why("Started as this user, nobody of ours could take it, and nothing would go live.")
        .mend(format!(
            "start it as root, or choose a higher port: {key} = \"{elsewhere}\""
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Mend, Severity};
    use super::*;

    fn local(device: &str, net: &str) -> Local {
        Local {
            device: device.to_owned(),
            net: net.parse().unwrap(),
        }
    }

    #[test]
    fn a_prefix_outside_the_shared_space_is_noted_with_a_part_that_is_free_here() {
        let net = |text: &str| text.parse().unwrap();
        assert_eq!(outside(net("100.64.0.0/16"), &[]), None);
        let locals = [local("eth0", "100.64.3.0/24"), local("eth1", "100.65.0.0/15")];
        let finding = outside(net("100.128.0.0/10"), &locals).unwrap();
        assert!(
            format!("{:?}", finding.mend).contains("100.66.0.0/16"),
            "{finding:?}"
        );
        assert_eq!(free_part(&[local("eth0", "100.0.0.0/8")]), None);
    }

    #[test]
    fn a_node_without_a_device_is_reached_within_the_shared_space_only() {
        let found = |own: &str, announced| unreached(own.parse().unwrap(), announced, &[]);
        for well in ["100.64.0.0/16", "100.127.255.254/32", "100.64.0.0/10"] {
            assert_eq!(found(well, true), None, "{well}");
        }
        let silent = found("100.128.0.0/10", false).unwrap();
        assert!(
            silent.what.contains("vpn.prefix 100.128.0.0/10 lies outside"),
            "{silent:?}"
        );
        assert_eq!(silent.severity, Severity::Warning);
        let announced = found("100.128.0.7/32", true).unwrap();
        assert!(
            announced.what.contains("this node's address 100.128.0.7 lies"),
            "{announced:?}"
        );
        assert_eq!(announced.severity, Severity::Error);
    }

    #[test]
    fn networks_that_overlap_are_named() {
        let locals = [local("eth0", "10.0.0.0/24"), local("br0", "100.100.0.0/16")];
        let prefix = |text: &str| Some(text.parse().unwrap());
        let found = overlaps(prefix("10.0.0.0/16"), false, &locals);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].what,
            "vpn.prefix 10.0.0.0/16 and the network 10.0.0.0/24 of eth0 overlap"
        );
        assert_eq!(overlaps(None, true, &locals).len(), 1, "a node's own device");
        assert_eq!(overlaps(None, false, &locals), []);
        assert_eq!(overlaps(prefix("100.64.0.0/16"), false, &locals), []);
    }

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let row = "eth0\t000AA8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        if cfg!(target_endian = "little") {
            assert_eq!(route(row), Some(local("eth0", "192.168.10.0/24")));
        }
        assert_eq!(route("eth0"), None);
        assert!(locals("none").iter().all(|local| !local.net.addr().is_loopback()));
    }

    #[test]
    fn a_taken_port_is_told_with_its_holder() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let finding = taken("mesh.http_listen", addr, &holder_of(addr).unwrap());
        assert!(
            finding.what.contains(&format!("(pid {}", std::process::id())),
            "{finding:?}"
        );
        let kill = format!("kill {}   # ends it", std::process::id());
        assert_eq!(finding.mend[0], Mend::Run(kill));
    }
}
