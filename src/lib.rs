//! dstack-vpc keeps a Confidential VM the way one `vpc.toml` says.
//!
//! Data goes one way, and the folders are its stations:
//!
//! ```text
//! vpc.toml + env ─► spec ─┐
//!                         ├─► desired ─► plan ─► apply ─► status
//! agent, gateway, disk ─► facts            (reconcile runs it again and again)
//! ```

pub mod agent;
pub mod api;
pub mod apply;
pub mod cli;
pub mod codes;
pub mod desired;
pub mod doctor;
pub mod facts;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod headscale;
mod http;
pub mod identity;
mod listen;
pub mod log;
pub mod mesh;
pub mod metrics;
pub mod names;
pub mod node;
pub mod page;
pub mod paths;
pub mod plan;
pub mod ratls;
pub mod reconcile;
pub mod registry;
mod schema;
pub mod spec;
pub mod supervisor;
pub mod words;
