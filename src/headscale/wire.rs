//! What Headscale's REST interface takes and gives, as far as it is used: the same from 0.26 to 0.29, and what 0.30
//! announces is taken too (errors of RFC 7807, numbers instead of strings).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::Secret;

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
    match quotable(&text) {
        quoted if quoted.is_empty() => "it did not say why".to_owned(),
        quoted => quoted,
    }
}

/// What of somebody else's words goes into a message.
pub(super) fn quotable(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    plain.trim().to_owned()
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
