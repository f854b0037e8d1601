//! RA-TLS: from a certificate chain to the app id that attestation established.
//!
//! All apps of a KMS share one root and every App CA has the same name, so a chain by itself proves
//! only "some app of this KMS". The identity is the app id extension, which must be the same on the
//! leaf and on the App CA that signed it; names in a certificate are chosen by the app and prove nothing.

mod chain;
mod extensions;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod verifier;

pub use chain::{ChainError, Purpose, VerifiedPeer, leaf, verify_chain};
pub(crate) use chain::{leads_to, still_valid};
pub use extensions::{ExtensionError, app_id, usage};
pub(crate) use verifier::{AnyServer, client, handshake_signatures};
pub use verifier::{ClientVerifier, PeerVerifier, provider};
