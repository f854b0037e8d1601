//! What a node says becomes its record, and how a record is written down.

use jiff::Timestamp;

use super::{Change, Node, RegistryError};
use crate::names::{AppId, NodeId};

/// A machine that lost its state more often than that leaves a record behind with Headscale.
const MOST_KEYS: usize = 16;

/// The record that `change` makes of the one that is `known`, and whether it is another one.
pub(super) fn changed(
    known: Option<&Node>,
    owner: AppId,
    id: &NodeId,
    change: &Change,
    now: Timestamp,
) -> Result<(Node, bool), RegistryError> {
    if known.is_some_and(|node| node.owner != owner) {
        return Err(RegistryError::NotYours(id.clone()));
    }
    let mut node = match known {
        Some(node) => node.clone(),
        None => Node {
            id: id.clone(),
            owner,
            name: format!("node-{id}"),
            node_type: None,
            ip: None,
            hostname: None,
            registered: now,
            typed: now,
            silence: None,
            join_keys: Vec::new(),
        },
    };
    let Change {
        name,
        node_type,
        ip,
        hostname,
        silence,
        join_key,
    } = change.clone();
    if node_type.is_some() && node_type != node.node_type {
        node.node_type = node_type;
        node.typed = now;
    }
    node.name = name.unwrap_or(node.name);
    node.ip = ip.or(node.ip);
    node.hostname = hostname.or(node.hostname);
    node.silence = silence.or(node.silence);
    if let Some(key) = join_key.filter(|key| !node.join_keys.contains(key)) {
        node.join_keys.push(key);
        let too_many = node.join_keys.len().saturating_sub(MOST_KEYS);
        node.join_keys.drain(..too_many);
    }
    let differs = known != Some(&node);
    Ok((node, differs))
}

/// As it is stored: JSON, so that people and later versions can read it.
pub(super) fn encode(node: &Node) -> Vec<u8> {
    // Fails for maps with keys that are no text, and there are none.
    serde_json::to_vec(node).unwrap_or_default()
}

/// The record that is stored under `id`.
pub(super) fn decode(id: &str, bytes: &[u8]) -> Result<Node, String> {
    let node: Node = serde_json::from_slice(bytes).map_err(|e| format!("the record of node {id}: {e}"))?;
    if node.id.as_str() != id {
        return Err(format!("the record of node {id} is that of node {}", node.id));
    }
    Ok(node)
}
