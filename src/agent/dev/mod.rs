//! A stand-in guest agent with its own KMS root. Nothing that it signs is attested.

pub mod pki;

pub use pki::{Forgery, Issued, LeafRequest, Pki, PkiError};
