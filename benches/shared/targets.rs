//! What is aimed at, and whether it was hit.

use std::fmt::Write as _;

/// One thing that was aimed at.
pub(crate) struct Target {
    what: String,
    limit: Limit,
    /// Not a number when it was not measured.
    got: f64,
}

pub(crate) enum Limit {
    AtMost(f64, &'static str),
    AtLeast(f64, &'static str),
}

use Limit::{AtLeast, AtMost};

impl Target {
    pub(crate) fn new(what: impl Into<String>, limit: Limit, got: f64) -> Self {
        let what = what.into();
        Self { what, limit, got }
    }

    fn met(&self) -> bool {
        match self.limit {
            AtMost(limit, _) => self.got <= limit,
            AtLeast(limit, _) => self.got >= limit,
        }
    }
}

/// As Markdown.
pub(crate) fn table<'t>(targets: impl IntoIterator<Item = &'t Target>) -> String {
    let mut text = heads(&["target", "wanted", "measured", ""]);
    for target in targets {
        let (sign, limit, unit) = match target.limit {
            AtMost(limit, unit) => ("≤", limit, unit),
            AtLeast(limit, unit) => ("≥", limit, unit),
        };
        let digits = if unit.contains('×') { 2 } else { 1 };
        row(
            &mut text,
            &[
                target.what.clone(),
                format!("{sign} {limit}{unit}"),
                format!("{:.digits$}{unit}", target.got),
                if target.met() { "met" } else { "**not met**" }.to_owned(),
            ],
        );
    }
    text
}

/// What a table begins with.
pub(crate) fn heads(heads: &[impl ToString]) -> String {
    let mut text = String::new();
    row(
        &mut text,
        &heads.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    row(&mut text, &vec!["---".to_owned(); heads.len()]);
    text
}

/// One of a table.
pub(crate) fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
