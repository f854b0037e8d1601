//! A server and nodes, each on a host of its own (network namespaces), with the real headscale and tailscaled. The
//! hosts are joined by one switch and a gateway; nothing else can be reached from them.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

mod dns;
mod doctor;
mod etcd;
mod faults;
mod figures;
mod hand;
mod harness;
mod load;
mod old_protocol;
mod promises;
mod secrets;
mod site;
mod story;
mod vpc;
