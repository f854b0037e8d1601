//! Reading the backends: a list of tables, all of it from the file or all of it from one variable, with
//! `MESH_BACKEND` in the place of one upstream.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Backend, SECTIONS};
use super::load::Document;
use super::problem::{Origin, Problem};
use super::table::{Section, TableReader, Variable, not_a_table};

impl Document<'_, '_> {
    /// Every `[[backends]]`, or what `VPC__BACKENDS` has instead, with `MESH_BACKEND` in its place.
    pub(super) fn backends(&mut self, mesh_backend: Option<&Variable>) -> Vec<Backend> {
        let variable = self.reader.variables.get("backends").cloned();
        let parsed;
        let value = match &variable {
            None => self.root.get("backends"),
            Some(variable) => match DeValue::parse(&variable.value) {
                Ok(value) => {
                    parsed = value;
                    Some(&parsed)
                }
                Err(e) => {
                    self.reader.problems.push(
                        Problem::new("`VPC__BACKENDS` is not TOML", variable.origin())
                            .key("backends")
                            .expected(e.message())
                            .help(BACKENDS_HELP.to_owned()),
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
                        _ => self.not_backends(item, variable.as_ref()),
                    }
                }
            }
            Some((value, _)) => self.not_backends(value, variable.as_ref()),
        }
        if let Some(mesh_backend) = mesh_backend {
            let at = default_backend(tables.iter().map(|(table, _)| *table)).unwrap_or_else(|| {
                tables.push((None, 0..0));
                tables.len() - 1
            });
            self.reader
                .variables
                .insert(format!("backends[{at}].upstream"), mesh_backend.clone());
        }
        let mut backends = Vec::new();
        for (i, (values, span)) in tables.into_iter().enumerate() {
            let origin = match (&variable, values) {
                (Some(variable), _) => variable.origin(),
                (None, Some(_)) => self.reader.in_file(span),
                (None, None) => Origin::Default,
            };
            let path = format!("backends[{i}]");
            self.reader.origins.insert(path.clone(), origin.clone());
            let mut table = TableReader {
                reader: self.reader,
                path,
                values,
                origin,
                variable: variable.clone(),
            };
            table.refuse_unknown(&Backend::INFO, &[], SECTIONS);
            match Backend::read(&mut table) {
                Some(backend) => backends.push(backend),
                None => {
                    self.reader.failed.insert("backends".into());
                }
            }
        }
        backends
    }

    fn not_backends(&mut self, value: &Spanned<DeValue<'_>>, variable: Option<&Variable>) {
        match variable {
            None => not_a_table(self.reader, &Backend::INFO, value),
            Some(variable) => self.reader.problems.push(
                Problem::new(
                    "`VPC__BACKENDS` has a value that cannot be used",
                    variable.origin(),
                )
                .key("backends")
                .expected("expected a list of tables")
                .help(BACKENDS_HELP.to_owned()),
            ),
        }
    }
}

const BACKENDS_HELP: &str =
    "write a TOML list: VPC__BACKENDS='[{ name = \"default\", upstream = \"127.0.0.1:8080\" }]'";

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
