//! What tailscaled needs of the kernel to have a network device: `/dev/net/tun`, `NET_ADMIN`, netfilter modules.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;

use super::modules::{self, Module};
use super::{Finding, Mend, Patient};
use crate::spec::Tun;

/// Bits of `CapEff`, from the kernel's include/uapi/linux/capability.h.
const NET_ADMIN: u32 = 12;

/// What was seen.
struct Seen {
    device: Result<(), ErrorKind>,
    net_admin: bool,
    modules: Vec<Module>,
}

pub(super) fn findings(patient: &Patient<'_>) -> Vec<Finding> {
    let node = &patient.spec.node;
    if !patient.spec.role.node || node.tun == Tun::Userspace {
        return Vec::new();
    }
    // What counts is what the daemon may do, where one runs: this command may be somebody else's.
    let pid = patient.daemon.map(|status| status.pid);
    let seen = Seen {
        device: open_tun(),
        net_admin: effective_capabilities(pid).is_none_or(|all| all & (1 << NET_ADMIN) != 0),
        modules: modules::look(patient.spec.tailscale.modules_dir.as_deref()),
    };
    judge(node.tun, &seen)
}

fn judge(tun: Tun, seen: &Seen) -> Vec<Finding> {
    let auto = tun == Tun::Auto;
    let mut findings = Vec::new();
    let consequence = |without: &str| {
        let then = match auto {
            true => {
                "node.tun = \"auto\" then takes userspace networking: the node joins, but programs here reach the VPN only \
                 through tailscale.proxy_listen, and what arrives is handed to 127.0.0.1."
            }
            false => {
                "node.tun = \"device\" asks for one, so tailscaled ends at once. \"userspace\" can do without."
            }
        };
        format!("{without}: {then}")
    };
    match seen.device {
        Ok(()) => findings.push(Finding::ok("tun", "/dev/net/tun can be opened")),
        Err(kind) => {
            const DEVICES: &str = "in the app's compose file:  devices: [\"/dev/net/tun\"]";
            let modprobe = |more: &str| Mend::Run(format!("modprobe tun{more}   # on the machine itself"));
            let (what, devices, otherwise) = match kind {
                ErrorKind::NotFound => (
                    "/dev/net/tun is not there".to_owned(),
                    DEVICES.to_owned(),
                    modprobe("; mkdir -p /dev/net; mknod /dev/net/tun c 10 200"),
                ),
                ErrorKind::PermissionDenied => (
                    "/dev/net/tun may not be opened".to_owned(),
                    format!("{DEVICES}; a bind mount alone does not permit it"),
                    Mend::Do("not in a container: run as root, or chmod 666 /dev/net/tun".to_owned()),
                ),
                other => (
                    format!("/dev/net/tun cannot be used: {other}"),
                    DEVICES.to_owned(),
                    modprobe(""),
                ),
            };
            let finding =
                Finding::error("tun", what).why(consequence("No network device can be made without it"));
            findings.push(finding.mend(devices).step(otherwise).milder(auto));
        }
    }
    findings.push(if seen.net_admin {
        Finding::ok("net-admin", "NET_ADMIN is there")
    } else {
        // `auto` looks at the device alone.
        Finding::error("net-admin", "the capability NET_ADMIN is missing")
            .why(
                "tailscaled sets addresses, routes and packet filters with it. With a /dev/net/tun and without NET_ADMIN it \
                 ends at once.",
            )
            .milder(auto && seen.device.is_err())
            .mend("in the app's compose file:  cap_add: [NET_ADMIN]")
            .mend("or do without: node.tun = \"userspace\"")
    });
    if seen.device.is_ok() {
        findings.extend(modules::findings(&seen.modules));
    }
    findings
}

fn open_tun() -> Result<(), ErrorKind> {
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
    options.open("/dev/net/tun").map(drop).map_err(|e| e.kind())
}

/// Of the daemon where it can be seen, else our own.
fn effective_capabilities(pid: Option<u32>) -> Option<u64> {
    let of = |who: &str| parse_capabilities(&std::fs::read_to_string(format!("/proc/{who}/status")).ok()?);
    pid.and_then(|pid| of(&pid.to_string())).or_else(|| of("self"))
}

fn parse_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::super::Severity::{Error, Ok as Well, Warning};
    use super::*;

    #[test]
    fn effective_capabilities_are_read_from_proc() {
        let root = parse_capabilities("Name:\tx\nCapPrm:\t0\nCapEff:\t000001fffeffffff\n").unwrap();
        assert_eq!(root, 0x1ff_feff_ffff);
        assert!(effective_capabilities(None).is_some());
        assert_eq!(parse_capabilities("CapEff:\tzz"), None);
    }

    #[test]
    fn what_is_missing_is_an_error_unless_userspace_networking_makes_up_for_it() {
        let judged = |tun, device: Result<(), ErrorKind>, net_admin| {
            let seen = Seen {
                device,
                net_admin,
                modules: Vec::new(),
            };
            let found = judge(tun, &seen);
            assert!(
                found
                    .iter()
                    .all(|f| f.severity == Well || !(f.mend.is_empty() || f.why.is_empty()))
            );
            found
                .into_iter()
                .filter(|f| f.check != "modules")
                .map(|f| (f.check, f.severity))
                .collect::<Vec<_>>()
        };
        let missing = Err(ErrorKind::NotFound);
        assert_eq!(
            judged(Tun::Device, Ok(()), true),
            [("tun", Well), ("net-admin", Well)]
        );
        assert_eq!(
            judged(Tun::Device, missing, true),
            [("tun", Error), ("net-admin", Well)]
        );
        assert_eq!(
            judged(Tun::Auto, missing, false),
            [("tun", Warning), ("net-admin", Warning)]
        );
        assert_eq!(
            judged(Tun::Auto, Ok(()), false),
            [("tun", Well), ("net-admin", Error)]
        );
    }
}
