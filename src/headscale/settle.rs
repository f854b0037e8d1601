//! Records that a machine left behind. One that lost its state joins as another node, under a name such as `db-1-1`,
//! and Headscale keeps the former one for ever.

use std::net::Ipv4Addr;

use super::{Headscale, HeadscaleError, VpnNode};
use crate::names::NodeName;

/// What became of the records that a machine left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// There are none (any more).
    Done,
    /// Headscale still takes a former one for present, or does not know the present one: ask again in a while.
    NotYet,
}

impl Headscale {
    /// Forgets the records that a machine left behind, and gives their name to the one it has now.
    ///
    /// `keys` are all that were made for this machine ([`super::MadeKey::id`]), for one node each: a node that joined
    /// with one of them is this machine, whoever says what. `address` is the one it has now.
    pub async fn settle(&self, keys: &[u64], address: Ipv4Addr) -> Result<Settled, HeadscaleError> {
        let nodes = self.nodes().await?;
        let Some(plan) = plan(&nodes, keys, address) else {
            return Ok(Settled::NotYet);
        };
        for former in &plan.former {
            tracing::info!(
                node = former.id,
                name = former.given_name,
                "forgets a machine's former self"
            );
            self.delete_node(former.id).await?;
        }
        if let Some(name) = &plan.name {
            self.rename_node(plan.present.id, name).await?;
        }
        Ok(match plan.is_complete {
            true => Settled::Done,
            false => Settled::NotYet,
        })
    }
}

struct Plan<'a> {
    present: &'a VpnNode,
    /// To be deleted.
    former: Vec<&'a VpnNode>,
    /// What the present one is to be called.
    name: Option<NodeName>,
    is_complete: bool,
}

/// `None`: the present node is not among them.
///
/// A Headscale that lost its state counts its keys from one again, and then another machine may have joined with a key
/// of the same id. So a former record is also one that asked for the same name.
fn plan<'a>(nodes: &'a [VpnNode], keys: &[u64], address: Ipv4Addr) -> Option<Plan<'a>> {
    let same = |node: &&VpnNode| node.join_key.is_some_and(|key| keys.contains(&key));
    let present = nodes
        .iter()
        .filter(same)
        .find(|node| node.ip_addresses.contains(&address.into()))?;
    let others = nodes
        .iter()
        .filter(same)
        .filter(|node| node.id != present.id && node.name == present.name);
    let (online, former): (Vec<_>, Vec<_>) = others.partition(|node| node.online);
    let is_free = |name: &NodeName| {
        let mut rest = nodes
            .iter()
            .filter(|node| former.iter().all(|it| it.id != node.id));
        rest.all(|node| node.given_name != name.as_str())
    };
    // The name it asks for, once nobody has it.
    let name = present.name.parse().ok().filter(is_free);
    Some(Plan {
        present,
        name,
        is_complete: online.is_empty(),
        former,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, given_name: &str, key: u64, online: bool) -> VpnNode {
        VpnNode {
            id,
            name: "db-1".to_owned(),
            given_name: given_name.to_owned(),
            ip_addresses: vec![[100, 128, 0, id as u8].into()],
            user: "default".to_owned(),
            online,
            last_seen: None,
            join_key: Some(key),
        }
    }

    const NOW: Ipv4Addr = Ipv4Addr::new(100, 128, 0, 9);

    fn planned(nodes: &[VpnNode], keys: &[u64]) -> Option<(Vec<u64>, Option<String>, bool)> {
        let plan = plan(nodes, keys, NOW)?;
        let former = plan.former.iter().map(|node| node.id).collect();
        Some((former, plan.name.map(|name| name.to_string()), plan.is_complete))
    }

    #[test]
    fn only_the_same_machines_absent_records_go() {
        let present = node(9, "db-1-1", 30, true);
        let gone = node(1, "db-1", 10, false);
        let db_1 = Some("db-1".to_owned());
        let both = [gone.clone(), present.clone()];
        assert_eq!(planned(&both, &[10, 30]), Some((vec![1], db_1.clone(), true)));
        // Another machine of that name stays, and keeps it.
        assert_eq!(planned(&both, &[30]), Some((vec![], None, true)));
        // So does one that has another name, whatever its key.
        let stranger = VpnNode {
            name: "web-1".to_owned(),
            ..gone.clone()
        };
        let strangers = [stranger, present.clone()];
        assert_eq!(planned(&strangers, &[10, 30]), Some((vec![], None, true)));
        // So does one that is here.
        let here = [node(1, "db-1", 10, true), present.clone()];
        assert_eq!(planned(&here, &[10, 30]), Some((vec![], None, false)));
        // Settled already.
        assert_eq!(
            planned(&[node(9, "db-1", 30, true)], &[10, 30]),
            Some((vec![], None, true))
        );
        // Whoever announces somebody else's address settles nothing.
        assert_eq!(planned(&both, &[10]), None);
        assert_eq!(planned(&[gone], &[10, 30]), None);
    }
}
