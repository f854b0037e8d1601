//! What a server kept of a node, in its own file or in etcd.

use super::record::{decode, encode};

/// `data` is a record.
pub(crate) fn record(data: &[u8]) {
    let id = serde_json::from_slice::<serde_json::Value>(data)
        .ok()
        .and_then(|record| Some(record.get("id")?.as_str()?.to_owned()));
    if let Ok(node) = decode(id.as_deref().unwrap_or_default(), data) {
        assert_eq!(Some(node.id.as_str()), id.as_deref());
        assert_eq!(decode(node.id.as_str(), &encode(&node)), Ok(node.clone()));
        assert!(decode("another", &encode(&node)).is_err() || node.id.as_str() == "another");
    }
}
