//! The JSON schema of `vpc.toml`, draft 7, for editors.

use serde_json::{Map, Value as Json, json};

use super::keys::SECTIONS;
use super::table::{Key, SectionInfo};

/// The name the schema has beside a `vpc.toml`.
pub const SCHEMA_FILE: &str = "vpc.schema.json";

/// The whole schema.
pub fn schema() -> Json {
    let mut properties = Map::new();
    for section in SECTIONS {
        if section.name.is_empty() {
            properties.extend(keys(section));
        } else {
            properties.insert(section.name.into(), table(section));
        }
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "vpc.toml",
        "description": "What a Confidential VM is in its VPC: the mesh, the server, the node.",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn table(section: &SectionInfo) -> Json {
    let mut table = json!({
        "type": "object",
        "properties": keys(section),
        "additionalProperties": false,
    });
    let required: Vec<&str> = section
        .keys
        .iter()
        .filter(|key| key.default.is_none())
        .map(|key| key.name)
        .collect();
    if !required.is_empty() {
        table["required"] = json!(required);
    }
    if section.many {
        return json!({ "description": section.about(), "type": "array", "items": table });
    }
    table["description"] = json!(section.about());
    table
}

fn keys(section: &SectionInfo) -> Map<String, Json> {
    section
        .keys
        .iter()
        .map(|key| (key.name.to_owned(), property(key)))
        .collect()
}

fn property(key: &Key) -> Json {
    let mut property = (key.schema)();
    property["description"] = json!(key.about());
    if let Some(default) = key.default.and_then(as_json) {
        property["default"] = default;
    }
    if let Some(example) = key.example.and_then(as_json) {
        property["examples"] = json!([example]);
    }
    property
}

/// A TOML value as JSON.
pub(super) fn as_json(value: &str) -> Option<Json> {
    let document: Json = toml::from_str(&format!("value = {value}")).ok()?;
    document.get("value").cloned()
}
