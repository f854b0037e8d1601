//! How the types of keys are read, shown and described. Each type is described here once; loading, the JSON
//! schema, the starter file and the reference page all ask it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::DeValue;

use super::suggest::did_you_mean;
use super::values::AllowedApps;
use crate::names::AppId;

/// The type of a key: how its value is read, written and described.
pub(super) trait Codec {
    /// What reading gives.
    type Value;
    /// How the text of an environment variable becomes a TOML value.
    const SHAPE: Shape = Shape::Text;
    /// What is accepted, in words, after "expected".
    fn expects() -> String;
    /// The JSON schema of the value.
    fn schema() -> Json;
    /// Reads it.
    fn read(raw: Raw<'_>) -> Result<Self::Value, Vec<Fault>>;
    /// As it would be written in the file.
    fn toml(value: &Self::Value) -> String;
}

/// How the text of an environment variable is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As it is.
    Text,
    /// Digits are an integer.
    Number,
    /// `[` starts a TOML list, anything else is separated by commas.
    List,
}

/// A value as it was written.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) value: &'a Spanned<DeValue<'a>>,
    /// In a variable a list may be separated by commas.
    pub(super) from_variable: bool,
}

/// Why a value was not accepted.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) expected: String,
    /// The type that was found, when the type is the matter.
    pub(super) found: Option<&'static str>,
    pub(super) help: Option<String>,
    /// The text that was written, to tell it from others in the same variable.
    pub(super) text: Option<String>,
}

impl<'a> Raw<'a> {
    pub(super) fn fault(self, expected: impl Into<String>, help: Option<String>) -> Vec<Fault> {
        vec![Fault {
            span: self.value.span(),
            expected: expected.into(),
            found: None,
            help,
            text: self.value.get_ref().as_str().map(str::to_owned),
        }]
    }

    pub(super) fn wrong_type(self, expected: impl Into<String>) -> Vec<Fault> {
        let mut faults = self.fault(expected, None);
        faults[0].found = Some(type_name(self.value.get_ref()));
        faults
    }

    /// The items of a list; a single value is a list of one.
    fn items(self) -> Vec<(Spanned<DeValue<'a>>, bool)> {
        match self.value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| (item.clone(), false)).collect(),
            DeValue::String(text) if self.from_variable => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| {
                    (
                        Spanned::new(self.value.span(), DeValue::String(item.to_owned().into())),
                        false,
                    )
                })
                .collect(),
            _ => vec![(self.value.clone(), false)],
        }
    }
}

/// The TOML type as a person names it.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Declares how a type is read from a string: what is expected, a pattern for editors, the parser (its error is
/// the help that can be given) and the way back.
macro_rules! text {
    ($($codec:ty => $value:ty {
        expects: $expects:expr,
        pattern: $pattern:expr,
        parse: $parse:expr,
        show: $show:expr,
    })*) => {$(
        impl $crate::spec::codec::Codec for $codec {
            type Value = $value;

            fn expects() -> String {
                $expects.into()
            }

            fn schema() -> serde_json::Value {
                serde_json::json!({ "type": "string", "pattern": $pattern })
            }

            fn read(raw: $crate::spec::codec::Raw<'_>) -> Result<$value, Vec<$crate::spec::codec::Fault>> {
                let parse: fn(&str) -> Result<$value, Option<String>> = $parse;
                match raw.value.get_ref() {
                    toml::de::DeValue::String(text) => parse(text).map_err(|help| raw.fault(Self::expects(), help)),
                    other => {
                        let mut faults = raw.wrong_type(Self::expects());
                        // A bare number gets the help that the same digits in quotes would get.
                        faults[0].help = other.as_integer().and_then(|digits| parse(digits.as_str()).err()?);
                        Err(faults)
                    }
                }
            }

            fn toml(value: &$value) -> String {
                let show: fn(&$value) -> String = $show;
                $crate::spec::codec::quoted(&show(value))
            }
        }
    )*};
}

/// Declares the words of a key that takes one of a few.
macro_rules! choice {
    ($($codec:ty { $($word:literal => $value:expr,)* })*) => {$(
        impl $codec {
            /// Each value with the word that stands for it.
            pub const WORDS: &'static [(&'static str, Self)] = &[$(($word, $value)),*];

            /// The word as it is written in the file.
            pub fn word(&self) -> &'static str {
                Self::WORDS.iter().find(|(_, value)| value == self).map_or("", |(word, _)| *word)
            }
        }

        impl $crate::spec::codec::Codec for $codec {
            type Value = $codec;

            fn expects() -> String {
                $crate::spec::codec::one_of(&[$($word),*])
            }

            fn schema() -> serde_json::Value {
                serde_json::json!({ "type": "string", "enum": [$($word),*] })
            }

            fn read(raw: $crate::spec::codec::Raw<'_>) -> Result<$codec, Vec<$crate::spec::codec::Fault>> {
                match raw.value.get_ref().as_str() {
                    $(Some($word) => Ok($value),)*
                    Some(other) => Err(raw.fault(
                        Self::expects(),
                        $crate::spec::suggest::did_you_mean(other, [$($word),*]),
                    )),
                    None => Err(raw.wrong_type(Self::expects())),
                }
            }

            fn toml(value: &$codec) -> String {
                $crate::spec::codec::quoted(value.word())
            }
        }
    )*};
}

pub(super) use {choice, text};

/// `"a", "b" or "c"`
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

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
        for (item, from_variable) in raw.items() {
            match T::read(Raw {
                value: &item,
                from_variable,
            }) {
                Ok(value) => values.push(value),
                Err(why) => faults.extend(why),
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

/// One value or more.
pub(super) struct Some1<T>(std::marker::PhantomData<T>);

impl<T: Codec> Codec for Some1<T> {
    type Value = Vec<T::Value>;
    const SHAPE: Shape = Shape::List;

    fn expects() -> String {
        Vec::<T>::expects()
    }

    fn schema() -> Json {
        let item = T::schema();
        json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
    }

    fn read(raw: Raw<'_>) -> Result<Self::Value, Vec<Fault>> {
        let values = Vec::<T>::read(raw)?;
        if values.is_empty() {
            Err(raw.fault(format!("at least one: {}", T::expects()), None))
        } else {
            Ok(values)
        }
    }

    fn toml(value: &Self::Value) -> String {
        Vec::<T>::toml(value)
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
        let (mut apps, mut faults) = (BTreeSet::new(), Vec::new());
        for (item, from_variable) in raw.items() {
            match AppId::read(Raw {
                value: &item,
                from_variable,
            }) {
                Ok(id) => {
                    apps.insert(id);
                }
                Err(why) => faults.extend(why),
            }
        }
        if faults.is_empty() {
            Ok(Self::Only(apps))
        } else {
            Err(faults)
        }
    }

    fn toml(value: &Self) -> String {
        match value {
            Self::Any => quoted("any"),
            Self::Only(apps) => list(apps.iter().map(AppId::toml)),
        }
    }
}

text! {
    AppId => AppId {
        expects: "an app id (40 hex digits)",
        pattern: "^[0-9a-fA-F]{40}$",
        parse: |s| s.parse().map_err(|_| {
            let bare = s.trim().trim_start_matches("0x");
            match bare.parse::<AppId>() {
                Ok(id) => Some(format!("did you mean `{id}`?")),
                Err(_) if s.len() >= 20 && s.bytes().all(|b| b.is_ascii_hexdigit()) => Some(format!("this has {} digits", s.len())),
                Err(_) => None,
            }
        }),
        show: ToString::to_string,
    }

    Duration => Duration {
        expects: "a duration, such as \"250ms\", \"30s\", \"5m\", \"2h\" or \"30d\"",
        pattern: "^[0-9]*[1-9][0-9]*(ms|s|m|h|d)$",
        parse: parse_duration,
        show: show_duration,
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

fn parse_duration(s: &str) -> Result<Duration, Option<String>> {
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

    #[test]
    fn quoted_text_reads_back() {
        for text in ["", "a\"b\\c", "tab\tnul\0\u{7f}é"] {
            let value = quoted(text);
            assert_eq!(DeValue::parse(&value).unwrap().get_ref().as_str(), Some(text));
        }
    }
}
