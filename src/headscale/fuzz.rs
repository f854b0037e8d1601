//! What Headscale answers.

use std::net::{Ipv4Addr, SocketAddr};

use super::Secret;
use super::client::Client;
use super::wire::{ApiKeys, CreatedJoinKey, CreatedUser, Nodes, Users, error_message, prefix_of};

/// `data` is an answer: each call reads it for its own, and a failure tells nothing of it.
pub(crate) fn headscale_answers(data: &[u8]) {
    let client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), Secret::new("k"));
    let told = |error: super::HeadscaleError| assert!(error.to_string().len() < 250, "{error}");
    client.parse::<Users>("a", data).map(drop).unwrap_or_else(told);
    client
        .parse::<CreatedUser>("a", data)
        .map(drop)
        .unwrap_or_else(told);
    client
        .parse::<CreatedJoinKey>("a", data)
        .map(drop)
        .unwrap_or_else(told);
    match client.parse::<ApiKeys>("a", data) {
        Err(error) => told(error),
        Ok(keys) => {
            for key in keys.api_keys {
                assert!(!key.prefix().starts_with("hskey-api-hskey-api-") || key.prefix().len() > 9);
            }
        }
    }
    match client.parse::<Nodes>("a", data) {
        Err(error) => told(error),
        Ok(Nodes { nodes }) => {
            let said: serde_json::Value = serde_json::from_slice(data).unwrap();
            let all = said["nodes"].as_array().map_or(0, Vec::len);
            assert_eq!(nodes.len(), all);
            for (at, node) in nodes.iter().enumerate() {
                let id = &said["nodes"][at]["id"];
                let text = id
                    .as_str()
                    .map_or(id.to_string(), |id| id.trim_start_matches(['+', '0']).to_owned());
                assert!(text == node.id.to_string() || node.id == 0, "{id}");
            }
        }
    }
    let message = error_message(data);
    assert!((1..=300).contains(&message.chars().count()), "{message:?}");
    assert!(!message.contains(char::is_control), "{message:?}");
    if let Ok(key) = std::str::from_utf8(data)
        && let Some(prefix) = prefix_of(&Secret::new(key))
    {
        // It goes into a list of keys that is no secret, and never is the whole key.
        assert!(key.contains(prefix) && prefix.len() < key.len());
    }
}
