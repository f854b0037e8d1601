//! `[::]` takes IPv4 too, unless something of ours listens on IPv4 at that port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::spec::Spec;

/// Every `[::]` of ours that is for IPv6 alone.
pub(crate) fn only_ipv6(spec: &Spec) -> BTreeSet<SocketAddr> {
    let ours = listening(spec);
    let taken = |port| ours.iter().any(|other| other.is_ipv4() && other.port() == port);
    let wildcards = ours.iter().filter(|addr| is_wildcard(**addr) && addr.port() != 0);
    wildcards.filter(|addr| taken(addr.port())).copied().collect()
}

pub(crate) fn is_wildcard(addr: SocketAddr) -> bool {
    addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

fn listening(spec: &Spec) -> Vec<SocketAddr> {
    let all = spec.listeners().into_iter();
    // Whether tailscaled has one is not known yet; `check` keeps the port free for it.
    let ours = all.filter(|(key, _)| key != "tailscale.proxy_listen");
    ours.map(|(_, addr)| addr).collect()
}
