//! etcd's v3 API as its JSON gateway speaks it: bytes in base64, 64-bit numbers as text, zeros left out.
//! (etcd: `api/etcdserverpb/rpc.proto`; the gateway's paths are stable since 3.4.)

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// The keys from `0` up to, but without, `1`.
#[derive(Debug, Clone)]
pub(super) struct Keys(pub(super) String, pub(super) String);

impl Keys {
    /// No key of ours.
    pub(super) fn nothing() -> Self {
        Self("\0".to_owned(), "\0\0".to_owned())
    }

    /// Everything that begins with `prefix`.
    pub(super) fn below(prefix: &str) -> Self {
        let mut end = prefix.to_owned().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self(prefix.to_owned(), String::from_utf8_lossy(&end).into_owned())
    }
}

/// A condition of a transaction.
#[derive(Debug, Clone)]
pub(super) enum If {
    /// The key was last written at this revision; 0: it does not exist.
    Revision(String, u64),
}

/// A step of a transaction. A lease of 0 is none.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Put { key: String, value: Vec<u8>, lease: u64 },
    Get { key: String },
    Delete { key: String },
}

/// All of `then` if every one of `when` holds, else all of `otherwise`.
#[derive(Debug, Clone, Default)]
pub(super) struct Txn {
    pub(super) when: Vec<If>,
    pub(super) then: Vec<Then>,
    pub(super) otherwise: Vec<Then>,
}

impl Txn {
    pub(super) fn body(&self) -> Value {
        let when = |If::Revision(key, revision): &If| json!({"target": "MOD", "result": "EQUAL", "key": base64(key), "mod_revision": revision.to_string()});
        let step = |step: &Then| match step {
            Then::Put { key, value, lease } => json!({"request_put":
                {"key": base64(key), "value": base64(value), "lease": lease.to_string()}}),
            Then::Get { key } => json!({"request_range": {"key": base64(key)}}),
            Then::Delete { key } => json!({"request_delete_range": {"key": base64(key)}}),
        };
        json!({
            "compare": self.when.iter().map(when).collect::<Vec<_>>(),
            "success": self.then.iter().map(step).collect::<Vec<_>>(),
            "failure": self.otherwise.iter().map(step).collect::<Vec<_>>(),
        })
    }
}

/// One page of a range.
pub(super) fn range(Keys(from, to): &Keys, limit: u32, revision: u64, keys_only: bool) -> Value {
    json!({"key": base64(from), "range_end": base64(to), "limit": limit.to_string(),
        "revision": revision.to_string(), "keys_only": keys_only})
}

pub(super) fn watch(Keys(from, to): &Keys, start: u64) -> Value {
    json!({"create_request":
        {"key": base64(from), "range_end": base64(to), "start_revision": start.to_string()}})
}

pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Kv {
    #[serde(default, deserialize_with = "text")]
    pub(super) key: String,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct RangeAnswer {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<Kv>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct TxnAnswer {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<StepAnswer>,
}

#[derive(Debug, Deserialize)]
struct StepAnswer {
    response_range: Option<RangeAnswer>,
}

impl TxnAnswer {
    /// What the first [`Then::Get`] found.
    pub(super) fn found(self) -> Option<Kv> {
        let ranges = self
            .responses
            .into_iter()
            .filter_map(|answer| answer.response_range);
        ranges.flat_map(|range| range.kvs).next()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct LeaseAnswer {
    #[serde(rename = "ID", default, deserialize_with = "number")]
    pub(super) id: u64,
    /// Seconds; 0 of a lease that is gone.
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    pub(super) ttl: u64,
}

#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    pub(super) token: String,
}

/// One line of a streamed answer.
#[derive(Debug, Deserialize)]
pub(super) struct Line<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<Refusal>,
}

/// etcd's own words. The codes are gRPC's.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default, alias = "grpc_code")]
    pub(super) code: u32,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct WatchAnswer {
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: u64,
    #[serde(default)]
    pub(super) cancel_reason: String,
    #[serde(default)]
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "type", default)]
    pub(super) kind: EventKind,
    pub(super) kv: Kv,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventKind {
    #[default]
    Put,
    Delete,
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    BASE64_STANDARD.decode(text.as_ref()).map_err(D::Error::custom)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::from_utf8(bytes(deserializer)?).map_err(D::Error::custom)
}

/// etcd's ids are signed, and their bits are all that counts.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(i64),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number as u64),
        Either::Text(text) => text
            .parse::<i64>()
            .map(|number| number as u64)
            .map_err(D::Error::custom),
    }
}
