//! A stand-in guest agent with its own KMS root. Nothing that it signs is attested.

mod answer;
mod extensions;
pub mod faults;
pub mod pki;
mod query;
pub mod server;

pub use faults::{Faults, FaultsPatch};
pub use pki::{Forgery, Issued, LeafRequest, Pki, PkiError};
pub use server::{DevAgent, DevAgentError, Machine, Options};
