//! The only place that changes the machine.
