//! The level-triggered loop that keeps the machine the way the file says.
