//! Every example does what it says: each vpc.toml and each app compose on hosts of their own (network namespaces), with the
//! real programs, at a real gateway.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "../vpn/site.rs"]
#[allow(dead_code)]
mod site;
#[path = "../vpn/vpc.rs"]
#[allow(dead_code)]
mod vpc;

mod cluster;
mod compose;
mod container;
mod files;
mod mesh;
mod migration;
mod vpn;
