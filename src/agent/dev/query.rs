//! `GetTlsKey` by query string, with the real agent's ways.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// The query as the JSON that a POST would carry: `true` and `false` are booleans, digits are numbers.
///
/// Arrays need literal brackets (`alt_names[]=a` or `alt_names[0]=a`): percent-encoded ones are an unknown field,
/// which the real agent ignores silently, and so does this one.
pub(super) fn to_json(query: &str) -> Value {
    let mut fields = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(&value.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned();
        match name.split_once('[') {
            Some((name, index)) if index.ends_with(']') => {
                let list = fields.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(Value::String(value));
                }
            }
            _ => {
                fields.insert(
                    percent_decode_str(name).decode_utf8_lossy().into_owned(),
                    scalar(name, value),
                );
            }
        }
    }
    Value::Object(fields)
}

fn scalar(name: &str, value: String) -> Value {
    match value.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        digits if name.starts_with("not_") => digits
            .parse()
            .map_or_else(|_| value.clone().into(), |n: u64| n.into()),
        _ => Value::String(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn queries_are_the_json_of_a_post() {
        assert_eq!(
            to_json("subject=a%20b&usage_server_auth=true&alt_names[]=x&alt_names[1]=y&not_after=7"),
            json!({"subject": "a b", "usage_server_auth": true, "alt_names": ["x", "y"], "not_after": 7})
        );
        assert_eq!(to_json("alt_names%5B%5D=x"), json!({"alt_names[]": "x"}));
        assert_eq!(to_json("subject=7&&flag"), json!({"subject": "7", "flag": ""}));
    }
}
