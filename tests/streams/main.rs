//! What lives long or comes in bulk, through the whole chain: client, nginx, outbound proxy, gateway, nginx, backend.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

mod chain;
mod grpc;
mod idle;
mod pressure;
mod reach;
mod rotation;
mod service;
mod socket;
