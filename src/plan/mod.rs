//! The difference between desired and present, as the smallest ordered set of actions.
