//! RA-TLS: reading app ids from certificates, and the verifiers that demand them.
