//! One hop: a request goes over a connection that was made or waited in a pool, and its answer comes back.
//!
//! Both directions of the mesh use it: the outbound proxy towards peers, the front towards backends.

mod bell;
pub(in crate::mesh) mod connect;
mod download;
mod failure;
mod forward;
pub(in crate::mesh) mod headers;
mod http2;
mod link;
mod metered;
mod pool;
pub(in crate::mesh) mod request_id;
mod tunnel;
mod upload;
mod vouch;

use std::time::Duration;

pub(in crate::mesh) use connect::Endpoint;
pub(in crate::mesh) use download::Download;
pub(in crate::mesh) use failure::{Failure, Far};
pub(in crate::mesh) use forward::{Hop, address, repeatable};
pub(in crate::mesh) use pool::{Dial, Pool, Slot};
pub(in crate::mesh) use upload::{Progress, Upload};
pub(in crate::mesh) use vouch::Vouch;

/// How often idle connections are looked at.
pub(in crate::mesh) const HOUSEKEEPING: Duration = Duration::from_secs(5);
