//! Seen from outside: what the daemon counts, as Prometheus reads it.
//!
//! What happens on the way of a request is counted where it happens, in numbers that one thread writes ([`cells`]).
//! Everything is gathered when somebody asks, so that nobody asking costs nothing.

mod catalog;
pub(crate) mod cells;
mod gather;
mod page;
mod process;
mod serve;

pub use catalog::reference;
pub use gather::Sources;
pub(crate) use gather::{ApiSide, Gather};
pub(crate) use serve::{KEY, router};
