//! What Headscale answers.

use std::net::{Ipv4Addr, SocketAddr};

use super::Secret;
use super::client::Client;
use super::wire::{ApiKeys, CreatedJoinKey, CreatedUser, Nodes, Users, error_message, prefix_of};
use crate::facts::fuzz::object;

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
            let said = object(data);
            let given = said.iter().flat_map(|said| said["nodes"].as_array()).flatten();
            for (node, given) in nodes.iter().zip(given) {
                let id = &given["id"];
                let digits = |id: &str| id.trim_start_matches(['+', '0']).to_owned();
                let digits = id.as_str().map_or(id.to_string(), digits);
                assert!(digits == node.id.to_string() || node.id == 0, "{id}");
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
