//! All findings, worst first, for people and for machines.

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{Finding, Severity};

/// Serialises as `doctor --json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// There is no error; warnings there may be.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

/// Columns of the text.
const WIDTH: usize = 100;
const INDENT: &str = "         ";

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        Self {
            ok: !findings.iter().any(|finding| finding.severity == Severity::Error),
            findings,
        }
    }

    /// For people; `verbose` also tells what is well.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        let told = self
            .findings
            .iter()
            .filter(|finding| verbose || finding.severity != Severity::Ok);
        for finding in told {
            text += &finding.text();
        }
        let count = |severity| self.findings.iter().filter(|f| f.severity == severity).count();
        let number = |count, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let well = count(Severity::Ok);
        text += &match (errors, warnings) {
            (0, 0) => format!(
                "{} looked at, nothing found that will not work\n",
                number(well, "thing")
            ),
            _ => format!(
                "{}, {}; {} well{}\n",
                number(errors, "error"),
                number(warnings, "warning"),
                number(well, "thing"),
                if verbose { "" } else { " (--verbose lists them)" }
            ),
        };
        text
    }
}

impl Finding {
    fn text(&self) -> String {
        let (style, word) = match self.severity {
            Severity::Error => (AnsiColor::Red.on_default().bold(), "error"),
            Severity::Warning => (AnsiColor::Yellow.on_default().bold(), "warning"),
            Severity::Note => (Style::new().bold(), "note"),
            Severity::Ok => (AnsiColor::Green.on_default(), "ok"),
        };
        let mut text = format!("{style}{word:<8}{style:#} ");
        text += wrapped(&self.what).trim_start();
        text += &wrapped(&self.why);
        for line in &self.mend {
            text += &format!("{INDENT}→ {line}\n");
        }
        if self.severity != Severity::Ok {
            text.push('\n');
        }
        text
    }
}

/// Indented lines of at most [`WIDTH`] columns where the words allow it.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut used = WIDTH;
        for word in line.split_whitespace() {
            let length = word.chars().count();
            if used + 1 + length > WIDTH - INDENT.len() {
                if !out.is_empty() && !out.ends_with('\n') {
                    out.push('\n');
                }
                out += INDENT;
                used = 0;
            } else {
                out.push(' ');
                used += 1;
            }
            out += word;
            used += length;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_what_is_well_only_on_request() {
        let report = Report::new(vec![
            Finding::ok("a", "this is well"),
            Finding::note("b", "good to know"),
            Finding::error("c", "broken ".repeat(20))
                .why("so it matters")
                .mend("do this"),
        ]);
        let plain = anstream::adapter::strip_str(&report.text(false)).to_string();
        assert_eq!(
            plain,
            "error    broken broken broken broken broken broken broken broken broken broken broken broken broken\n\
             \x20        broken broken broken broken broken broken broken\n\
             \x20        so it matters\n\
             \x20        → do this\n\n\
             note     good to know\n\n\
             1 error, 0 warnings; 1 thing well (--verbose lists them)\n"
        );
        assert!(plain.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(report.text(true).contains("this is well"));
        assert!(!report.ok);
        let well = Report::new(vec![Finding::ok("a", "this is well")]);
        assert!(well.ok);
        assert_eq!(
            well.text(false),
            "1 thing looked at, nothing found that will not work\n"
        );
    }
}
