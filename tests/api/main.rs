//! The VPC API through its listener, on a real registry and, where a key is made, a real Headscale.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
#[path = "../rendered/fronts.rs"]
mod fronts;
#[path = "../headscale/place.rs"]
mod place;
#[path = "../rendered/mod.rs"]
mod rendered;

mod callers;
mod compatible;
mod document;
mod durable;
mod front;
mod kit;
mod listener;
mod parameters;
mod several;
mod waiting;
