//! The reference page, `docs/configuration.md`.

use std::fmt::Write as _;

use super::keys::SECTIONS;
use super::lists::OR_A_LIST;
use super::table::{Key, SectionInfo};
use super::variables::{ALIASES, variable_of};

const INTRODUCTION: &str = "\
<!-- Made from src/spec by `UPDATE_GOLDEN=1 cargo test --test spec_generated`. Do not edit. -->

# Configuration

`dstack-vpc` reads one `vpc.toml`. Every key has a default unless it is said to be required, and a key that is not
listed here is an error. The environment comes before the file, the file before what is detected on the machine, and
that before the default. With no file at all, the environment alone is a complete configuration.

`dstack-vpc init` prints a file to begin with, `check` finds every mistake in one go, `explain` shows each value and
where it comes from, and `schema` prints the JSON schema that editors read from the line `#:schema ./vpc.schema.json`.

The file is `--config`, else `$DSTACK_VPC_CONFIG`, else `/etc/dstack-vpc/vpc.toml` if it exists, and at most 8 MiB. Where
a list is accepted, one value alone stands for a list of one.

Durations are a whole number and a unit, from `1ms` to `3650d`: `ms`, `s`, `m`, `h` or `d`. Ports are from 1 to 65535. DNS
names have up to 253 characters, and up to 63 from dot to dot.
";

const VARIABLES: &str = "\
## Environment

Any key can be set by `VPC__SECTION__KEY`, as `VPC__MESH__HTTP_LISTEN=0.0.0.0:8080` or `VPC__ROLE=server`. Lists are
separated by commas or written as TOML; `VPC__BACKENDS` holds all backends (and `VPC__FORWARDS` all forwards):
`VPC__BACKENDS='[{ name = \"default\", upstream = \"127.0.0.1:8080\" }]'`. An empty variable counts as unset, and a
`VPC__` variable that names no key is an error. Some keys have variables with names of their own; where both are set,
`VPC__SECTION__KEY` is used.

| variable | sets | |
|---|---|---|
";

/// The page, as Markdown.
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    for section in SECTIONS {
        let _ = match section {
            SectionInfo { name: "", .. } => writeln!(out, "\n## Before the first section\n"),
            SectionInfo { name, many: true, .. } => writeln!(out, "\n## [[{name}]]\n"),
            SectionInfo { name, .. } => writeln!(out, "\n## [{name}]\n"),
        };
        let _ = writeln!(out, "{}\n", section.about());
        let _ = writeln!(out, "| key | default | accepts | |\n|---|---|---|---|");
        for key in section.keys {
            let (accepts, about) = (cell(&accepts(key)), cell(&key.about()));
            let own: String = variables(&section.path(key))
                .map(|name| format!(" Also `{name}`."))
                .collect();
            let _ = writeln!(
                out,
                "| `{}` | {} | {accepts} | {about}{own} |",
                key.name,
                default(key)
            );
        }
    }
    out.push('\n');
    out += VARIABLES;
    for alias in ALIASES {
        let about = alias.about.unwrap_or_default();
        let _ = writeln!(out, "| `{}` | `{}` | {} |", alias.name, alias.key, cell(about));
    }
    out
}

/// One key in full, as `explain KEY` shows it.
pub fn about_key(section: &SectionInfo, key: &Key) -> String {
    let mut out = format!("{}\nAccepts {}.", key.about(), (key.expects)());
    if !section.many {
        let path = section.path(key);
        let names: Vec<String> = variables(&path)
            .map(str::to_owned)
            .chain([variable_of(&path)])
            .collect();
        let _ = write!(out, "\nVariables: {}.", names.join(", "));
    }
    out
}

/// The variables of a key that have names of their own.
fn variables(path: &str) -> impl Iterator<Item = &'static str> {
    ALIASES
        .iter()
        .filter(move |alias| alias.key == path)
        .map(|alias| alias.name)
}

/// What is accepted, without the examples: the default is one.
fn accepts(key: &Key) -> String {
    let words = (key.expects)();
    let (item, list) = match words.strip_suffix(OR_A_LIST) {
        Some(item) => (item, OR_A_LIST),
        None => (words.as_str(), ""),
    };
    let short = item.split_once(", such as").map_or(item, |(short, _)| short);
    format!("{short}{list}")
}

fn default(key: &Key) -> String {
    match (key.default, key.example) {
        (Some(default), _) => format!("`{default}`"),
        (None, Some(example)) => format!("required, e.g. `{example}`"),
        (None, None) => "required".into(),
    }
}

/// Text that does not end its cell, nor pass for HTML.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}
