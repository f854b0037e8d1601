//! What a key is, and how a table of them is read.
//!
//! [`section!`] declares a section once: the struct the program uses, and for each key its type, its default and
//! the text that describes it everywhere.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::codec::{Codec, Fault, Raw, Shape, type_name};
use super::problem::{MOST_PROBLEMS, Origin, Problem, may_hold_password};
use super::suggest::nearest;
use super::text::ConfigText;

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// As TOML; `None` when it has to be given.
    pub default: Option<&'static str>,
    /// As TOML, for a key without a default.
    pub example: Option<&'static str>,
    /// What is accepted, in words.
    pub expects: fn() -> String,
    /// The JSON schema of the value, without its description.
    pub schema: fn() -> Json,
    pub(super) about: &'static str,
}

impl Key {
    /// What it is for, as one paragraph.
    pub fn about(&self) -> String {
        paragraph(self.about)
    }
}

/// A table of the file.
#[derive(Debug)]
pub struct SectionInfo {
    /// As written in the file; empty for the keys before the first section.
    pub name: &'static str,
    /// `[[name]]`: any number of them.
    pub many: bool,
    /// Its keys, in the order a reader wants.
    pub keys: &'static [Key],
    pub(super) about: &'static str,
}

impl SectionInfo {
    /// What it is for, as one paragraph.
    pub fn about(&self) -> String {
        paragraph(self.about)
    }

    /// `section.key`, or the key alone where there is no section.
    pub fn path(&self, key: &Key) -> String {
        join(self.name, key.name)
    }
}

fn paragraph(doc: &str) -> String {
    doc.split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

/// A section that can be read and shown.
pub(super) trait Section: Sized {
    const INFO: SectionInfo;
    fn read(table: &mut TableReader<'_, '_>) -> Option<Self>;
    /// Each key with its value as TOML.
    fn show(&self) -> Vec<(&'static str, String)>;
}

macro_rules! section {
    ($(#[doc = $about:literal])* $vis:vis $kind:ident $section:literal $Type:ident {
        $($(#[doc = $doc:literal])* $field:ident $($rename:literal)?: $ty:ty $(as $codec:ty)? $(= $default:tt)? $(=> $example:tt)?;)*
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $Type {
            $($(#[doc = $doc])* pub $field: $ty,)*
        }

        impl $crate::spec::table::Section for $Type {
            const INFO: $crate::spec::table::SectionInfo = $crate::spec::table::SectionInfo {
                name: $section,
                many: $crate::spec::table::section!(@many $kind),
                about: concat!($($about, "\n"),*),
                keys: &[$($crate::spec::table::Key {
                    name: $crate::spec::table::section!(@name $field $($rename)?),
                    default: $crate::spec::table::section!(@default $($default)?),
                    example: $crate::spec::table::section!(@default $($example)?),
                    expects: <$crate::spec::table::section!(@codec $ty $(, $codec)?) as $crate::spec::codec::Codec>::expects,
                    schema: <$crate::spec::table::section!(@codec $ty $(, $codec)?) as $crate::spec::codec::Codec>::schema,
                    about: concat!($($doc, "\n"),*),
                },)*],
            };

            fn read(table: &mut $crate::spec::table::TableReader<'_, '_>) -> Option<Self> {
                $(let $field = table.get::<$crate::spec::table::section!(@codec $ty $(, $codec)?)>(
                    $crate::spec::table::section!(@name $field $($rename)?),
                    $crate::spec::table::section!(@default $($default)?),
                );)*
                Some(Self { $($field: $field?,)* })
            }

            fn show(&self) -> Vec<(&'static str, String)> {
                vec![$((
                    $crate::spec::table::section!(@name $field $($rename)?),
                    <$crate::spec::table::section!(@codec $ty $(, $codec)?) as $crate::spec::codec::Codec>::toml(&self.$field),
                ),)*]
            }
        }
    };
    (@many one) => { false };
    (@many many) => { true };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $rename:literal) => { $rename };
    (@default) => { None };
    (@default $default:tt) => { Some(stringify!($default)) };
    (@codec $ty:ty) => { $ty };
    (@codec $ty:ty, $codec:ty) => { $codec };
}
pub(super) use section;

/// A variable that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

impl Variable {
    pub(super) fn origin(&self) -> Origin {
        Origin::Variable {
            name: self.name.clone(),
            value: self.value.clone(),
        }
    }
}

/// What reading a configuration has found so far.
pub(super) struct Reader<'s> {
    pub(super) source: Option<&'s ConfigText>,
    /// By key path.
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) problems: Vec<Problem>,
    /// Where each key's value comes from, by key path.
    pub(super) origins: BTreeMap<String, Origin>,
    /// Keys whose value could not be read: nothing is concluded from them.
    pub(super) failed: BTreeSet<String>,
}

impl Reader<'_> {
    /// The place of something in the file.
    pub(super) fn in_file(&self, span: std::ops::Range<usize>) -> Origin {
        self.source
            .map_or(Origin::Default, |source| Origin::File(source.spot(span)))
    }

    pub(super) fn report(&mut self, path: &str, fault: Fault, variable: Option<&Variable>) {
        let origin = match variable {
            Some(variable) => variable.origin(),
            None => self.in_file(fault.span),
        };
        let message = match fault.found {
            Some(_) => format!("`{path}` has the wrong type"),
            None => format!("`{path}` has a value that cannot be used"),
        };
        let mut expected = format!("expected {}", fault.expected);
        if let Some(found) = fault.found {
            expected += &format!(", found {found}");
        } else if let (Some(variable), Some(text)) = (variable, &fault.text) {
            // The caret cannot show which of several it is.
            if *text != variable.value && !may_hold_password(text) {
                expected += &format!(", found `{}`", text.escape_debug());
            }
        }
        let problem = Problem::new(message, origin).expected(expected).help(fault.help);
        self.fail(path, problem);
    }

    /// Notes that the value of a key could not be read.
    pub(super) fn fail(&mut self, path: &str, problem: Problem) {
        self.problems.push(problem.key(path));
        self.failed.insert(path.to_owned());
    }
}

/// One table being read.
pub(super) struct TableReader<'r, 's> {
    pub(super) reader: &'r mut Reader<'s>,
    /// `mesh`, `backends[0]`, or nothing.
    pub(super) path: String,
    pub(super) values: Option<&'r DeTable<'r>>,
    /// Of the table itself.
    pub(super) origin: Origin,
    /// Set when the table stands in a variable.
    pub(super) variable: Option<Variable>,
}

impl TableReader<'_, '_> {
    /// The value of a key: from the environment, else the file, else the default.
    ///
    /// A value that cannot be read is reported, and the default stands in so that reading can go on.
    pub(super) fn get<C: Codec>(&mut self, name: &str, default: Option<&str>) -> Option<C::Value> {
        let path = join(&self.path, name);
        let mut origin = Origin::Default;
        let mut found = None;
        if let Some((_, value)) = self.values.and_then(|values| values.get_key_value(name)) {
            origin = match &self.variable {
                Some(variable) => variable.origin(),
                None => self.reader.in_file(value.span()),
            };
            match C::read(Raw {
                value,
                from_variable: false,
            }) {
                Ok(value) => found = Some(value),
                Err(faults) => {
                    for fault in faults {
                        self.reader.report(&path, fault, self.variable.as_ref());
                    }
                }
            }
        }
        if let Some(variable) = self.reader.variables.get(&path).cloned() {
            origin = variable.origin();
            match read_variable::<C>(&variable.value) {
                Ok(value) => found = Some(value),
                Err(faults) => {
                    for fault in faults {
                        self.reader.report(&path, fault, Some(&variable));
                    }
                }
            }
        }
        if found.is_none() && default.is_none() && !self.reader.failed.contains(&path) {
            let problem = Problem::new(format!("`{path}` is missing"), self.origin.clone())
                .key(&path)
                .expected(format!("`{name}` is required here: {}", C::expects()));
            self.reader.problems.push(problem);
        }
        self.reader.origins.insert(path, origin);
        found.or_else(|| {
            let default = DeValue::parse(default?).ok()?;
            C::read(Raw {
                value: &default,
                from_variable: false,
            })
            .ok()
        })
    }

    /// Reports keys that the section does not have.
    pub(super) fn refuse_unknown(&mut self, known: &SectionInfo, also: &[&str], all: &[SectionInfo]) {
        let names = || known.keys.iter().map(|key| key.name).chain(also.iter().copied());
        let written = self.values.into_iter().flatten().map(|(key, _)| key);
        let unknown = written.filter(|key| names().all(|known| known != key.get_ref().as_ref()));
        for key in unknown.take(MOST_PROBLEMS) {
            let name: &str = key.get_ref();
            let elsewhere = || {
                all.iter().find(|section| {
                    section.name != known.name && section.keys.iter().any(|key| key.name == name)
                })
            };
            let help = match (nearest(name, names()), elsewhere()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(section)) if section.name.is_empty() => {
                    format!("`{name}` stands before the first [section]")
                }
                (None, Some(section)) => format!("`{name}` is a key of [{}]", section.name),
                (None, None) => {
                    format!(
                        "its keys are {}",
                        names()
                            .map(|name| format!("`{name}`"))
                            .collect::<Vec<_>>()
                            .join(", ")
                    )
                }
            };
            let place = match known.name {
                "" => "at the top".to_owned(),
                name if known.many => format!("in [[{name}]]"),
                name => format!("in [{name}]"),
            };
            let origin = match &self.variable {
                Some(variable) => variable.origin(),
                None => self.reader.in_file(key.span()),
            };
            let problem = Problem::new(
                format!("there is no key `{}` {place}", name.escape_debug()),
                origin,
            )
            .key(join(&self.path, name))
            .expected("unknown key")
            .help(help);
            self.reader.problems.push(problem);
        }
    }
}

fn read_variable<C: Codec>(text: &str) -> Result<C::Value, Vec<Fault>> {
    let as_text = || Spanned::new(0..0, DeValue::String(text.into()));
    // TOML does not know `007`, a shell does.
    let number = text.parse::<u64>().unwrap_or_default().to_string();
    let value = match C::SHAPE {
        Shape::Number if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            DeValue::parse(&number).unwrap_or_else(|_| as_text())
        }
        Shape::List if text.starts_with('[') => DeValue::parse(text).map_err(|e| {
            vec![Fault {
                span: 0..0,
                expected: C::expects(),
                found: None,
                text: None,
                help: Some(format!(
                    "a value that starts with `[` is read as a TOML list: {}",
                    e.message()
                )),
            }]
        })?,
        _ => as_text(),
    };
    C::read(Raw {
        value: &value,
        from_variable: true,
    })
}

/// Reports a value that should have been a table.
pub(super) fn not_a_table(reader: &mut Reader<'_>, section: &SectionInfo, value: &Spanned<DeValue<'_>>) {
    let name = section.name;
    let expected = if section.many {
        format!("[[{name}]]")
    } else {
        format!("[{name}]")
    };
    let origin = reader.in_file(value.span());
    let problem = Problem::new(format!("`{name}` is a section"), origin)
        .key(name)
        .expected(format!(
            "expected {expected} and its keys, found {}",
            type_name(value.get_ref())
        ))
        .help(format!(
            "write {expected} on a line of its own, and the keys below it"
        ));
    reader.problems.push(problem);
}
