//! Both fronts through their own doors, with the same tests: nginx as it is rendered, and the one built in.
//!
//! Each test function makes two tests, `<function>::nginx` and `<function>::builtin`. What only one of them has is in
//! `nginx_alone` and `builtin_alone`.

#[path = "../rendered/fronts.rs"]
mod fronts;
#[path = "../mesh/kit/mod.rs"]
mod kit;
#[path = "../rendered/mod.rs"]
mod rendered;

mod builtin_alone;
mod entrances;
mod identity;
mod ingress;
mod limits;
mod local;
mod nginx_alone;
mod peer;
mod streams;
mod upstreams;
