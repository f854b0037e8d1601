//! What the benchmarks of the mesh and of the reconciler have in common.

pub(crate) mod chart;
pub(crate) mod host;
pub(crate) mod parts;
pub(crate) mod proc;
pub(crate) mod targets;
