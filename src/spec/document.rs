//! The file as a whole: its sections, and its lists of sections.
//!
//! [`document!`] declares it once. A list is all of it from the file or all of it from one variable, with `MESH_BACKEND` in
//! the place of one upstream.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Backend, Forward, SECTIONS};
use super::problem::{Origin, Problem};
use super::table::{Reader, Section, SectionInfo, TableReader, Variable, join, not_a_table};
use super::variables::variable_of;

/// The file being read.
pub(super) struct Document<'r, 's> {
    pub(super) reader: &'r mut Reader<'s>,
    pub(super) root: &'r DeTable<'r>,
}

/// Declares the whole file from its sections.
macro_rules! document {
    ($($field:ident: $Type:ident,)* [[backends]] [[forwards]] $($later:ident: $Later:ident,)*) => {
        /// Everything the user wants, with every default filled in.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Spec {
            /// What this machine is.
            pub role: Role,
            /// Who may register with this server.
            pub allowed_apps: AllowedApps,
            $(
                #[doc = concat!("`[", stringify!($field), "]`")]
                pub $field: $Type,
            )*
            /// `[[backends]]`
            pub backends: Vec<Backend>,
            /// `[[forwards]]`
            pub forwards: Vec<Forward>,
            $(
                #[doc = concat!("`[", stringify!($later), "]`")]
                pub $later: $Later,
            )*
        }

        /// Every section, in the order of the contract.
        pub const SECTIONS: &[SectionInfo] =
            &[Top::INFO, $($Type::INFO,)* Backend::INFO, Forward::INFO, $($Later::INFO,)*];

        impl Spec {
            /// Each key, such as `mesh.client_listen` or `backends[0].name`, with its value as TOML.
            pub fn values(&self) -> Vec<(String, String)> {
                let top = Top { version: 1, role: self.role, allowed_apps: self.allowed_apps.clone() };
                let mut all = prefixed("", &top);
                $(all.extend(prefixed($Type::INFO.name, &self.$field));)*
                for (i, backend) in self.backends.iter().enumerate() {
                    all.extend(prefixed(&format!("backends[{i}]"), backend));
                }
                for (i, forward) in self.forwards.iter().enumerate() {
                    all.extend(prefixed(&format!("forwards[{i}]"), forward));
                }
                $(all.extend(prefixed($Later::INFO.name, &self.$later));)*
                all
            }
        }

        impl Spec {
            /// Reads every section but the lists, all of them even when one fails.
            pub(super) fn read(document: &mut Document<'_, '_>) -> Option<Self> {
                let top = document.section::<Top>();
                $(let $field = document.section::<$Type>();)*
                $(let $later = document.section::<$Later>();)*
                let top = top?;
                Some(Self {
                    role: top.role,
                    allowed_apps: top.allowed_apps,
                    $($field: $field?,)*
                    backends: Vec::new(),
                    forwards: Vec::new(),
                    $($later: $later?,)*
                })
            }
        }
    };
}
pub(super) use document;

impl Document<'_, '_> {
    /// One section; its defaults where the file does not have it.
    pub(super) fn section<S: Section>(&mut self) -> Option<S> {
        let name = S::INFO.name;
        let (values, origin) = if name.is_empty() {
            (Some(self.root), Origin::Default)
        } else {
            match self.root.get(name) {
                None => (None, Origin::Default),
                Some(value) => match value.get_ref() {
                    DeValue::Table(table) => (Some(table), self.reader.in_file(value.span())),
                    _ => {
                        not_a_table(self.reader, &S::INFO, value);
                        (None, Origin::Default)
                    }
                },
            }
        };
        let sections: Vec<&str> = SECTIONS
            .iter()
            .map(|section| section.name)
            .filter(|section| name.is_empty() && !section.is_empty())
            .collect();
        let mut table = TableReader {
            reader: self.reader,
            path: name.into(),
            values,
            origin,
            variable: None,
        };
        table.refuse_unknown(&S::INFO, &sections, SECTIONS);
        S::read(&mut table)
    }

    /// Every `[[backends]]`, or what `VPC__BACKENDS` has instead, with `MESH_BACKEND` in its place.
    pub(super) fn backends(&mut self, mesh_backend: Option<&Variable>) -> Vec<Backend> {
        self.list(|tables, reader| {
            let Some(mesh_backend) = mesh_backend else { return };
            let at = default_backend(tables.iter().map(|(table, _)| *table)).unwrap_or_else(|| {
                tables.push((None, 0..0));
                tables.len() - 1
            });
            reader
                .variables
                .insert(format!("backends[{at}].upstream"), mesh_backend.clone());
        })
    }

    /// Every `[[forwards]]`, or what `VPC__FORWARDS` has instead.
    pub(super) fn forwards(&mut self) -> Vec<Forward> {
        self.list(|_, _| {})
    }

    /// `amend` may add to the tables that were found.
    fn list<S: Section>(&mut self, amend: impl FnOnce(&mut Vec<Written<'_>>, &mut Reader<'_>)) -> Vec<S> {
        let name = S::INFO.name;
        let variable = self.reader.variables.get(name).cloned();
        let parsed;
        let value = match &variable {
            None => self.root.get(name),
            Some(variable) => match DeValue::parse(&variable.value) {
                Ok(value) => {
                    parsed = value;
                    Some(&parsed)
                }
                Err(e) => {
                    self.reader.problems.push(
                        Problem::new(format!("`{}` is not TOML", variable_of(name)), variable.origin())
                            .key(name)
                            .expected(e.message())
                            .help(format!("write a TOML list: {}", example(&S::INFO))),
                    );
                    None
                }
            },
        };
        let mut tables = Vec::new();
        match value.map(|value| (value, value.get_ref())) {
            None => {}
            Some((_, DeValue::Array(items))) => {
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(table) => tables.push((Some(table), item.span())),
                        _ => self.not_a_list(&S::INFO, item, variable.as_ref()),
                    }
                }
            }
            Some((value, _)) => self.not_a_list(&S::INFO, value, variable.as_ref()),
        }
        amend(&mut tables, self.reader);
        let mut all = Vec::new();
        for (i, (values, span)) in tables.into_iter().enumerate() {
            let origin = match (&variable, values) {
                (Some(variable), _) => variable.origin(),
                (None, Some(_)) => self.reader.in_file(span),
                (None, None) => Origin::Default,
            };
            let path = format!("{name}[{i}]");
            self.reader.origins.insert(path.clone(), origin.clone());
            let mut table = TableReader {
                reader: self.reader,
                path,
                values,
                origin,
                variable: variable.clone(),
            };
            table.refuse_unknown(&S::INFO, &[], SECTIONS);
            match S::read(&mut table) {
                Some(one) => all.push(one),
                None => {
                    self.reader.failed.insert(name.into());
                }
            }
        }
        all
    }

    fn not_a_list(
        &mut self,
        section: &SectionInfo,
        value: &Spanned<DeValue<'_>>,
        variable: Option<&Variable>,
    ) {
        match variable {
            None => not_a_table(self.reader, section, value),
            Some(variable) => self.reader.problems.push(
                Problem::new(
                    format!("`{}` has a value that cannot be used", variable_of(section.name)),
                    variable.origin(),
                )
                .key(section.name)
                .expected("expected a list of tables")
                .help(format!("write a TOML list: {}", example(section))),
            ),
        }
    }
}

/// A table of the list, and where it stands; `None` where only a variable speaks of it.
type Written<'r> = (Option<&'r DeTable<'r>>, Range<usize>);

/// How to write such a list in a variable.
pub(super) fn example(section: &SectionInfo) -> String {
    let keys = section.keys.iter();
    let keys = keys.filter_map(|key| match (key.name, key.example) {
        ("name", _) => Some("name = \"default\"".to_owned()),
        (name, example) => Some(format!("{name} = {}", example?)),
    });
    let (variable, keys) = (variable_of(section.name), keys.collect::<Vec<_>>().join(", "));
    format!("{variable}='[{{ {keys} }}]'")
}

/// The backend that `MESH_BACKEND` speaks of: the one named `default`, else the one for every other Host.
fn default_backend<'a>(tables: impl Iterator<Item = Option<&'a DeTable<'a>>> + Clone) -> Option<usize> {
    let says = |table: Option<&DeTable<'_>>, key: &str, wanted: &str| {
        table.is_some_and(|table| match table.get(key) {
            Some(value) => value.get_ref().as_str() == Some(wanted),
            // Both keys have the wanted word as their default.
            None => true,
        })
    };
    let mut tables_again = tables.clone();
    tables_again
        .position(|table| says(table, "name", "default"))
        .or_else(|| { tables }.position(|table| says(table, "server_name", "_")))
}

/// Each key of a section with its path and its value as TOML.
pub(super) fn prefixed<S: Section>(path: &str, section: &S) -> Vec<(String, String)> {
    section
        .show()
        .into_iter()
        .map(|(key, value)| (join(path, key), value))
        .collect()
}
