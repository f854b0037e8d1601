//! `vpc.toml` and the environment, parsed once into a [`Spec`] that cannot be wrong.
//!
//! `keys.rs` is the table of every key. [`read`] gets the file's text, [`load`] makes a [`Spec`] of it and the
//! environment and remembers where each value came from. Nothing here does I/O except [`read`].

mod check;
mod codec;
mod document;
mod effective;
mod keys;
mod listeners;
mod lists;
mod load;
mod numbers;
mod parse;
mod problem;
mod reference;
mod schema;
mod starter;
mod suggest;
mod table;
mod text;
mod types;
pub mod values;
mod variables;

pub use keys::{
    Backend, Dstack, Forward, Headscale, IdentityPolicy, Limits, Log, Mesh, Nginx, Node, Reconcile, Registry,
    SECTIONS, Server, Spec, Supervisor, Tailscale, Vpn,
};
pub use load::{Loaded, load};
pub(crate) use numbers::parse_duration;
pub use problem::{Origin, Problem, Problems, Severity};
pub use reference::{about_key, reference};
pub use schema::{SCHEMA_FILE, schema};
pub use starter::starter;
pub use suggest::did_you_mean;
pub use table::{Key, SectionInfo};
pub use text::{ConfigText, MAX_BYTES, ReadError, Spot, read};
pub use values::*;
pub use variables::{ALIASES, Alias, variable_of};
