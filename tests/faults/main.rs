//! Every step of a reconcile goes wrong once, in every way, and is the last one once: what is left is always one whole
//! generation that serves, and the next start brings about what is wished.
//!
//! `FAULTS=all` (`make faults`) goes on from each fault in each way, and tries every pair of two.
//!
//! The machine is one in memory, so that a power cut can lose what was not synced.

#![allow(unreachable_pub)]

mod children;
mod disk;
mod edits;
mod format;
mod growth;
mod machine;
mod minimal;
mod pairs;
mod properties;
mod single;
#[path = "../specs/mod.rs"]
mod specs;
mod stopped;
mod story;
mod told;
mod world;
