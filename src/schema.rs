//! JSON schemas of what the commands print for machines.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::ToSchema;

/// The schema of `T`, with all that it consists of.
pub(crate) fn of<T: ToSchema>() -> Value {
    let mut parts = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut parts);
    let parts: BTreeMap<_, _> = parts.into_iter().collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{}", T::name()),
        "components": { "schemas": parts },
    })
}
