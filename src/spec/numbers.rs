//! Keys that are numbers, and durations.

use std::time::Duration;

use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::codec::{Codec, Fault, Raw, Shape, quoted, text};
use super::suggest::did_you_mean;

/// An integer from `MIN` to `MAX`.
pub(super) struct Int<const MIN: u16, const MAX: u16>;

impl<const MIN: u16, const MAX: u16> Codec for Int<MIN, MAX> {
    type Value = u16;
    const SHAPE: Shape = Shape::Number;

    fn expects() -> String {
        if MIN == MAX {
            MIN.to_string()
        } else {
            format!("a whole number from {MIN} to {MAX}")
        }
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn read(raw: Raw<'_>) -> Result<u16, Vec<Fault>> {
        match raw.value.get_ref() {
            DeValue::Integer(digits) => u16::from_str_radix(digits.as_str(), digits.radix())
                .ok()
                .filter(|n| (MIN..=MAX).contains(n))
                .ok_or_else(|| raw.fault(Self::expects(), None)),
            DeValue::String(_) if raw.from_variable => Err(raw.fault(Self::expects(), None)),
            _ => Err(raw.wrong_type(Self::expects())),
        }
    }

    fn toml(value: &u16) -> String {
        value.to_string()
    }
}

/// A number of workers, or `auto` for 0.
pub(super) struct Workers;

impl Codec for Workers {
    type Value = u16;
    const SHAPE: Shape = Shape::Number;

    fn expects() -> String {
        "\"auto\" or a number from 1 to 1024".into()
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "type": "string", "enum": ["auto"] }, Int::<1, 1024>::schema()] })
    }

    fn read(raw: Raw<'_>) -> Result<u16, Vec<Fault>> {
        match raw.value.get_ref().as_str() {
            Some("auto") => Ok(0),
            Some(other) => Err(raw.fault(Self::expects(), did_you_mean(other, ["auto"]))),
            None => Int::<1, 1024>::read(raw).map_err(|mut faults| {
                faults
                    .iter_mut()
                    .for_each(|fault| fault.expected = Self::expects());
                faults
            }),
        }
    }

    fn toml(value: &u16) -> String {
        if *value == 0 {
            quoted("auto")
        } else {
            value.to_string()
        }
    }
}

/// A number of things that may well be large; 0 is without end.
pub(super) struct Count;

impl Codec for Count {
    type Value = u32;
    const SHAPE: Shape = Shape::Number;

    fn expects() -> String {
        "a whole number from 0 to 4294967295".into()
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
    }

    fn read(raw: Raw<'_>) -> Result<u32, Vec<Fault>> {
        match raw.value.get_ref() {
            DeValue::Integer(digits) => u32::from_str_radix(digits.as_str(), digits.radix())
                .map_err(|_| raw.fault(Self::expects(), None)),
            DeValue::String(_) if raw.from_variable => Err(raw.fault(Self::expects(), None)),
            _ => Err(raw.wrong_type(Self::expects())),
        }
    }

    fn toml(value: &u32) -> String {
        value.to_string()
    }
}

/// `true` or `false`.
pub(super) struct Switch;

impl Codec for Switch {
    type Value = bool;

    fn expects() -> String {
        "true or false".into()
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }

    fn read(raw: Raw<'_>) -> Result<bool, Vec<Fault>> {
        match raw.value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            DeValue::String(text) if raw.from_variable => match text.as_ref() {
                "true" => Ok(true),
                "false" => Ok(false),
                other => Err(raw.fault(Self::expects(), did_you_mean(other, ["true", "false"]))),
            },
            DeValue::String(text) if ["true", "false"].contains(&text.as_ref()) => Err(raw.fault(
                Self::expects(),
                Some(format!("write it without quotes: `{text}`")),
            )),
            _ => Err(raw.wrong_type(Self::expects())),
        }
    }

    fn toml(value: &bool) -> String {
        value.to_string()
    }
}

/// The `version` of the file.
pub(super) struct FileVersion;

impl Codec for FileVersion {
    type Value = u16;
    const SHAPE: Shape = Shape::Number;

    fn expects() -> String {
        "1, the only version there is".into()
    }

    fn schema() -> Json {
        json!({ "type": "integer", "enum": [1] })
    }

    fn read(raw: Raw<'_>) -> Result<u16, Vec<Fault>> {
        Int::<1, 1>::read(raw).map_err(|mut faults| {
            for fault in &mut faults {
                fault.expected = Self::expects();
            }
            faults
        })
    }

    fn toml(value: &u16) -> String {
        value.to_string()
    }
}

text! {
    Duration => Duration {
        expects: "a duration up to 3650d, such as \"250ms\", \"30s\", \"5m\" or \"2h\"",
        pattern: "^[0-9]*[1-9][0-9]*(ms|s|m|h|d)$",
        parse: parse_duration,
        show: show_duration,
    }
}

/// A duration, or `0s` for one that never ends.
pub(super) struct Patience;

text! {
    Patience => Duration {
        expects: "\"0s\" (never) or a duration up to 3650d, such as \"90s\", \"24h\" or \"30d\"",
        pattern: "^[0-9]+(ms|s|m|h|d)$",
        parse: |s| match s {
            "0s" => Ok(Duration::ZERO),
            other => parse_duration(other),
        },
        show: |duration| match duration.is_zero() {
            true => "0s".to_owned(),
            false => show_duration(duration),
        },
    }
}

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Durations end somewhere: ten years.
const LONGEST_MS: u64 = 3650 * 86_400_000;

pub(crate) fn parse_duration(s: &str) -> Result<Duration, Option<String>> {
    let digits = s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = s.split_at(digits);
    if unit.is_empty() && !number.is_empty() {
        return Err(Some(format!("add a unit: `{number}s`")));
    }
    let number: u64 = number.parse().map_err(|_| None)?;
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
        .ok_or(None)?;
    match number.checked_mul(factor) {
        Some(0) => Err(Some("it must be longer than nothing".into())),
        Some(ms) if ms <= LONGEST_MS => Ok(Duration::from_millis(ms)),
        _ => Err(Some("the longest is 3650d".into())),
    }
}

fn show_duration(duration: &Duration) -> String {
    let ms = duration.as_millis();
    let (unit, factor) = UNITS
        .into_iter()
        .rev()
        .find(|(_, factor)| ms.is_multiple_of(u128::from(*factor)))
        .unwrap_or(UNITS[0]);
    format!("{}{unit}", ms / u128::from(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_shown() {
        for text in ["250ms", "30s", "5m", "2h", "30d", "1ms", "90s"] {
            assert_eq!(show_duration(&parse_duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(&parse_duration("120s").unwrap()), "2m");
        for bad in [
            "",
            "s",
            "5",
            "-5s",
            "5 s",
            "1.5s",
            "0s",
            "5S",
            "99999999999999999999s",
            "3651d",
            "5ß",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
