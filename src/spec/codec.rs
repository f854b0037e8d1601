//! How the types of keys are read, shown and described. Each type is described here once; loading, the JSON
//! schema, the starter file and the reference page all ask it.

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::DeValue;

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
    pub(super) fn items(self) -> Vec<Spanned<DeValue<'a>>> {
        match self.value.get_ref() {
            DeValue::Array(items) => items.iter().cloned().collect(),
            DeValue::String(text) if self.from_variable => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Spanned::new(self.value.span(), DeValue::String(item.to_owned().into())))
                .collect(),
            _ => vec![self.value.clone()],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_reads_back() {
        for text in ["", "a\"b\\c", "tab\tnul\0\u{7f}é"] {
            let value = quoted(text);
            assert_eq!(DeValue::parse(&value).unwrap().get_ref().as_str(), Some(text));
        }
    }
}
