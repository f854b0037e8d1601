//! Whom Headscale knows. A machine that is deleted there does not notice by itself: its connection goes on, and nobody
//! reaches it any more.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::headscale::Headscale;

/// How long a list is believed that has the address, and one that has not: the node may be newer.
const BELIEVED: Duration = Duration::from_secs(30);
const DOUBTED: Duration = Duration::from_secs(1);

/// A sign of life does not wait for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Headscale's addresses, asked for now and then.
#[derive(Default)]
pub(super) struct Census(Mutex<Option<List>>);

struct List {
    at: Instant,
    /// `None`: Headscale did not answer.
    addresses: Option<HashSet<Ipv4Addr>>,
}

impl Census {
    /// Whether Headscale has a node with `address`; `None` when that cannot be said at the moment.
    pub(super) async fn knows(&self, headscale: &Headscale, address: Ipv4Addr) -> Option<bool> {
        // One asks, and the others need not wait for it.
        let mut list = self.0.try_lock().ok()?;
        if let Some(answer) = list.as_ref().and_then(|list| list.answer(address)) {
            return answer;
        }
        let nodes = timeout(PATIENCE, headscale.nodes())
            .await
            .ok()
            .and_then(Result::ok);
        let addresses = nodes.map(|nodes| {
            let all = nodes.iter().flat_map(|node| &node.ip_addresses);
            all.filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            })
            .collect()
        });
        let new = List {
            at: Instant::now(),
            addresses,
        };
        list.insert(new).answer(address).flatten()
    }
}

impl List {
    /// `None`: the list is too old to answer.
    fn answer(&self, address: Ipv4Addr) -> Option<Option<bool>> {
        let knows = self.addresses.as_ref().map(|all| all.contains(&address));
        let longest = if knows == Some(true) { BELIEVED } else { DOUBTED };
        (self.at.elapsed() < longest).then_some(knows)
    }
}
