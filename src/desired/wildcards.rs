//! `[::]` takes IPv4 too, unless something of ours listens on IPv4 at that port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::spec::{Front, Spec};

/// Every `[::]` of ours that is for IPv6 alone.
pub(super) fn only_ipv6(spec: &Spec) -> BTreeSet<SocketAddr> {
    let ours = listening(spec);
    let taken = |port| ours.iter().any(|other| other.is_ipv4() && other.port() == port);
    let wildcards = ours.iter().filter(|addr| is_wildcard(**addr) && addr.port() != 0);
    wildcards.filter(|addr| taken(addr.port())).copied().collect()
}

pub(super) fn is_wildcard(addr: SocketAddr) -> bool {
    addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

fn listening(spec: &Spec) -> Vec<SocketAddr> {
    let mesh = &spec.mesh;
    let mut ours = vec![mesh.client_listen, mesh.http_listen, mesh.https_listen];
    if mesh.front == Front::Nginx {
        ours.push(mesh.auth_listen);
    }
    if spec.role.server {
        ours.extend([spec.server.api_listen, spec.server.headscale_listen]);
    }
    ours.extend(spec.metrics.listen);
    ours.extend(spec.status.listen);
    ours.extend(spec.backends.iter().filter_map(|backend| backend.listen));
    ours.extend(spec.forwards.iter().map(|forward| forward.listen));
    ours
}
