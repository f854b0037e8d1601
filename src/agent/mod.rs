//! The dstack guest agent: where it is, the client of the real one, and a stand-in for laptops and tests.

pub mod client;
pub mod dev;
pub mod discover;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

pub use client::{AgentClient, AgentError, Info, TlsKey, TlsKeyRequest};
pub use discover::{Discovered, NoAgent, SIMULATOR_VARIABLE, discover};
