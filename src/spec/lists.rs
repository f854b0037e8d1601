//! Keys that take several values.

use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::codec::{Codec, Fault, Raw, Shape, quoted};
use super::problem::MOST_PROBLEMS;
use super::suggest::did_you_mean;
use super::values::{AllowedApps, Upstream};
use crate::names::{AppId, HostPort};

/// How the words for a list end.
pub(super) const OR_A_LIST: &str = ", or a list of such";

/// Any number of values, or one alone.
impl<T: Codec> Codec for Vec<T> {
    type Value = Vec<T::Value>;
    const SHAPE: Shape = Shape::List;

    fn expects() -> String {
        format!("{}{OR_A_LIST}", T::expects())
    }

    fn schema() -> Json {
        let item = T::schema();
        json!({ "anyOf": [item, { "type": "array", "items": item }] })
    }

    fn read(raw: Raw<'_>) -> Result<Self::Value, Vec<Fault>> {
        let (mut values, mut faults) = (Vec::new(), Vec::new());
        for item in raw.items() {
            match T::read(Raw {
                value: &item,
                from_variable: false,
            }) {
                Ok(value) => values.push(value),
                Err(why) => faults.extend(why),
            }
            if faults.len() >= MOST_PROBLEMS {
                break;
            }
        }
        if faults.is_empty() {
            Ok(values)
        } else {
            Err(faults)
        }
    }

    fn toml(value: &Self::Value) -> String {
        list(value.iter().map(T::toml))
    }
}

impl Codec for Upstream {
    type Value = Self;
    const SHAPE: Shape = Shape::List;

    fn expects() -> String {
        Vec::<HostPort>::expects()
    }

    fn schema() -> Json {
        let item = HostPort::schema();
        json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
    }

    fn read(raw: Raw<'_>) -> Result<Self, Vec<Fault>> {
        let none = || raw.fault(format!("at least one: {}", HostPort::expects()), None);
        Self::new(Vec::<HostPort>::read(raw)?).ok_or_else(none)
    }

    fn toml(value: &Self) -> String {
        list(value.iter().map(HostPort::toml))
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

impl Codec for AllowedApps {
    type Value = Self;
    const SHAPE: Shape = Shape::List;

    fn expects() -> String {
        "\"any\" or a list of app ids (40 hex digits each)".into()
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "string", "enum": ["any"] },
            { "type": "array", "items": AppId::schema() },
        ] })
    }

    fn read(raw: Raw<'_>) -> Result<Self, Vec<Fault>> {
        match raw.value.get_ref() {
            DeValue::String(text) if text == "any" => return Ok(Self::Any),
            DeValue::String(text) if !raw.from_variable => {
                let help = match text.parse::<AppId>() {
                    Ok(id) => Some(format!("did you mean `[\"{id}\"]`?")),
                    Err(_) => did_you_mean(text, ["any"]),
                };
                return Err(raw.fault(Self::expects(), help));
            }
            DeValue::String(_) | DeValue::Array(_) => {}
            _ => return Err(raw.wrong_type(Self::expects())),
        }
        Vec::<AppId>::read(raw).map(Self::from_iter)
    }

    fn toml(value: &Self) -> String {
        match value {
            Self::Any => quoted("any"),
            Self::Only(apps) => list(apps.iter().map(AppId::toml)),
        }
    }
}
