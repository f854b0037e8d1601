//! Whole machines, tried through the doors their users have: real nginx, real supervisord, real TLS.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

mod addresses;
mod bad_input;
mod callers;
mod children;
mod cost;
mod drift;
mod edits;
mod front;
mod headscale;
mod identity;
mod lifecycle;
mod observe;
mod peers;
mod previews;
mod rollout;
mod secrets;
mod smuggling;
mod tcp;
mod traffic;
mod upgrade;
mod volume;
