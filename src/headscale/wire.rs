//! What Headscale's REST interface takes and gives, as far as it is used: the same from 0.26 to 0.29, and what 0.30
//! announces is taken too (errors of RFC 7807, numbers instead of strings).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::Secret;
use crate::names::NodeType;
use crate::words;

/// A node as Headscale knows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VpnNode {
    #[serde(deserialize_with = "id")]
    pub id: u64,
    /// What the machine calls itself; not unique.
    pub name: String,
    /// Its name in the VPN's DNS; unique.
    #[serde(default)]
    pub given_name: String,
    #[serde(default)]
    pub ip_addresses: Vec<IpAddr>,
    /// `default`, or `tagged-devices` for a node with tags from 0.28 on.
    #[serde(default, deserialize_with = "user_name")]
    pub user: String,
    #[serde(default)]
    pub online: bool,
    pub last_seen: Option<Timestamp>,
    /// The id of the key it joined with, see [`super::MadeKey`].
    #[serde(default, rename = "preAuthKey", deserialize_with = "key_id")]
    pub join_key: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct Nodes {
    #[serde(default)]
    pub(super) nodes: Vec<VpnNode>,
}

#[derive(Deserialize)]
pub(super) struct User {
    #[serde(deserialize_with = "id")]
    pub(super) id: u64,
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Deserialize)]
pub(super) struct Users {
    #[serde(default)]
    pub(super) users: Vec<User>,
}

#[derive(Deserialize)]
pub(super) struct CreatedUser {
    pub(super) user: User,
}

#[derive(Serialize)]
pub(super) struct CreateUser<'a> {
    pub(super) name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateJoinKey {
    /// A number as text.
    pub(super) user: String,
    pub(super) reusable: bool,
    pub(super) ephemeral: bool,
    /// Without one the key would have expired when it is made.
    pub(super) expiration: Timestamp,
    pub(super) acl_tags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreatedJoinKey {
    pub(super) pre_auth_key: JoinKeyMade,
}

#[derive(Deserialize)]
pub(super) struct JoinKeyMade {
    #[serde(deserialize_with = "id")]
    pub(super) id: u64,
    pub(super) key: Secret,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiKeys {
    #[serde(default)]
    pub(super) api_keys: Vec<ApiKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiKey {
    #[serde(default)]
    prefix: String,
    pub(super) expiration: Option<Timestamp>,
    pub(super) created_at: Option<Timestamp>,
}

impl ApiKey {
    /// Up to 0.27 the bare prefix, later a masked key such as `hskey-api-abcdefghijkl-***`.
    pub(super) fn prefix(&self) -> &str {
        let bare = self.prefix.strip_prefix(NEW_STYLE).unwrap_or(&self.prefix);
        let masked = bare
            .strip_suffix("***")
            .map(|it| it.strip_suffix('-').unwrap_or(it));
        masked.unwrap_or(bare)
    }
}

/// The tag for nodes of a type, for operators and policies. `None`: policies allow no such tag.
///
/// Without a policy tags change nothing for the nodes themselves: from 0.26 to 0.29 tagged ones see each other, have
/// names, and keep both name and address when they log in again under another tag or none (measured). From 0.28 on a
/// tagged node belongs to `tagged-devices` instead of its user, and stays tagged.
pub(super) fn tag(node_type: &NodeType) -> Option<String> {
    let name = node_type.as_str().to_ascii_lowercase();
    let is_allowed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_allowed.then(|| format!("tag:{name}"))
}

/// Keys of 0.28 and later begin with it.
const NEW_STYLE: &str = "hskey-api-";

/// What a key is listed and deleted by: the part of it that is no secret. `None`: it is no API key.
pub(super) fn prefix_of(key: &Secret) -> Option<&str> {
    let key = key.expose();
    match key.strip_prefix(NEW_STYLE) {
        Some(rest) => rest.get(..12).filter(|_| rest.as_bytes().get(12) == Some(&b'-')),
        None => key.split_once('.').map(|(prefix, _)| prefix),
    }
    .filter(|prefix| !prefix.is_empty())
}

/// Headscale's own sentence, else the start of what was written.
pub(super) fn error_message(body: &[u8]) -> String {
    /// Up to 0.29 `message`, later `detail` and `title`.
    #[derive(Deserialize)]
    struct Answer {
        message: Option<String>,
        detail: Option<String>,
        title: Option<String>,
    }
    let text = serde_json::from_slice::<Answer>(body)
        .ok()
        .and_then(|answer| answer.message.or(answer.detail).or(answer.title))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    words::or_nothing(words::quoted(&text))
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Number(u64),
        Text(String),
    }
    match Id::deserialize(deserializer)? {
        Id::Number(id) => Ok(id),
        Id::Text(text) => text
            .parse()
            .map_err(|_| serde::de::Error::custom("an id is no number")),
    }
}

fn user_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let user = Option::<User>::deserialize(deserializer)?;
    Ok(user.map(|user| user.name).unwrap_or_default())
}

fn key_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Key {
        #[serde(deserialize_with = "id")]
        id: u64,
    }
    Ok(Option::<Key>::deserialize(deserializer)?.map(|key| key.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_versions_answer_is_understood() {
        // 0.26, 0.29, and a future without strings for numbers.
        for node in [
            r#"{"id":"7","name":"db-1","givenName":"db-1-h2wbl1sg","ipAddresses":["100.128.0.4"],"user":{"id":"1","name":"default"},
                "lastSeen":null,"expiry":"0001-01-01T00:00:00Z","preAuthKey":{"id":"3","key":"abc"},"forcedTags":["tag:db"],"online":true}"#,
            r#"{"id":"7","name":"db-1","givenName":"db-1-h2wbl1sg","ipAddresses":["100.128.0.4"],"user":{"id":"1","name":"default"},
                "lastSeen":null,"expiry":null,"preAuthKey":{"id":"3","key":"hskey-auth-x-***"},"tags":[],"online":true}"#,
            r#"{"id":7,"name":"db-1","givenName":"db-1-h2wbl1sg","ipAddresses":["100.128.0.4"],"user":{"id":1,"name":"default"},
                "preAuthKey":{"id":3},"online":true,"more":{}}"#,
        ] {
            let node: VpnNode = serde_json::from_str(node).unwrap();
            assert_eq!((node.id, node.join_key, node.online), (7, Some(3), true));
            assert_eq!((node.name.as_str(), node.user.as_str()), ("db-1", "default"));
            assert_eq!(node.ip_addresses, ["100.128.0.4".parse::<IpAddr>().unwrap()]);
        }
        let bare: VpnNode =
            serde_json::from_str(r#"{"id":"7","name":"x","user":null,"preAuthKey":null}"#).unwrap();
        assert_eq!(
            (bare.join_key, bare.user.as_str(), bare.last_seen),
            (None, "", None)
        );
        assert!(serde_json::from_str::<VpnNode>(r#"{"id":"x","name":"x"}"#).is_err());
    }

    #[test]
    fn refusals_are_told_in_headscales_words() {
        for (body, message) in [
            (
                r#"{"code":2,"message":"user not found","details":[]}"#,
                "user not found",
            ),
            (
                r#"{"title":"Conflict","status":409,"detail":"user exists"}"#,
                "user exists",
            ),
            (r#"{"title":"Conflict","status":409}"#, "Conflict"),
            ("Unauthorized\n", "Unauthorized"),
            ("", "it did not say why"),
        ] {
            assert_eq!(error_message(body.as_bytes()), message);
        }
        assert_eq!(error_message(&[b'x'; 5000]).len(), 300);
    }

    #[test]
    fn keys_are_found_by_their_prefix() {
        let new = format!("hskey-api-ab-_efghij-l-{}", "s".repeat(64));
        for (key, listed) in [
            ("OfHz5oj.secret", "OfHz5oj"),
            ("OfHz5oj.secret", "OfHz5oj***"),
            (new.as_str(), "hskey-api-ab-_efghij-l-***"),
        ] {
            let listed: ApiKey = serde_json::from_value(serde_json::json!({ "prefix": listed })).unwrap();
            assert_eq!(prefix_of(&Secret::new(key)), Some(listed.prefix()), "{key}");
        }
        for junk in ["", ".", "hskey-api-", "hskey-api-short-x", "word"] {
            assert_eq!(prefix_of(&Secret::new(junk)), None, "{junk}");
        }
    }

    #[test]
    fn a_type_becomes_a_tag_where_policies_allow_it() {
        let tag = |node_type: &str| tag(&node_type.parse().unwrap());
        assert_eq!(tag("mongodb").as_deref(), Some("tag:mongodb"));
        assert_eq!(tag("App-2").as_deref(), Some("tag:app-2"));
        for other in ["a.b", "a_b", "2nd"] {
            assert_eq!(tag(other), None, "{other}");
        }
    }
}
