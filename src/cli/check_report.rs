//! What `check` says: everything that is wrong with the configuration, and the word of each consumer's own checker.

use serde::Serialize;

use crate::spec::{Loaded, Problems, Severity};

/// The word of a program that will read a rendered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The command, e.g. `nginx -t`.
    pub checker: String,
    /// What it said.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What a checker said of a rendered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "message", rename_all = "lowercase")]
pub enum Verdict {
    /// It would take it.
    Passed,
    /// It would not, in its own words.
    Failed(String),
    /// It was not asked, and why.
    Skipped(String),
}

/// Everything `check` found.
#[derive(Debug, Serialize)]
pub struct CheckReport<'a> {
    /// No error, no checker that refuses.
    pub ok: bool,
    /// Errors and warnings.
    pub problems: &'a Problems,
    /// In the order they were asked.
    pub checkers: Vec<Checked>,
}

impl<'a> CheckReport<'a> {
    /// Of a configuration that was loaded, or was not; in that case nothing was rendered that could be checked.
    pub fn new(loaded: Result<&'a Loaded, &'a Problems>, checkers: Vec<Checked>) -> Self {
        let refused = checkers
            .iter()
            .any(|checked| matches!(checked.verdict, Verdict::Failed(_)));
        Self {
            ok: loaded.is_ok() && !refused,
            problems: loaded.map_or_else(|problems| problems, |loaded| &loaded.warnings),
            checkers,
        }
    }

    /// For a person; the last line sums it up.
    pub fn text(&self, color: bool) -> String {
        let mut out = self.problems.render(color);
        for Checked { checker, verdict } in &self.checkers {
            out += &match verdict {
                Verdict::Passed => format!("{checker}: passed\n"),
                Verdict::Skipped(why) => format!("{checker}: not asked, {why}\n"),
                Verdict::Failed(words) => {
                    let words: String = words
                        .trim_end()
                        .lines()
                        .map(|line| format!("  {line}\n"))
                        .collect();
                    format!("{checker}: refused\n{words}")
                }
            };
        }
        let count = |severity| {
            self.problems
                .iter()
                .filter(|problem| problem.severity == severity)
                .count()
        };
        let refused = self
            .checkers
            .iter()
            .filter(|checked| matches!(checked.verdict, Verdict::Failed(_)))
            .count();
        let mut sum = Vec::new();
        for (n, one, many) in [
            (count(Severity::Error), "error", "errors"),
            (count(Severity::Warning), "warning", "warnings"),
            (refused, "refused by a program", "refused by programs"),
        ] {
            if n > 0 {
                sum.push(format!("{n} {}", if n == 1 { one } else { many }));
            }
        }
        let verdict = if self.ok {
            "The configuration can be used"
        } else {
            "The configuration cannot be used"
        };
        out += &match sum.is_empty() {
            true => format!("{verdict}.\n"),
            false => format!("{verdict}: {}.\n", sum.join(", ")),
        };
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{ConfigText, load};

    fn checked(checker: &str, verdict: Verdict) -> Checked {
        Checked {
            checker: checker.to_owned(),
            verdict,
        }
    }

    #[test]
    fn the_last_line_sums_it_up() {
        let bad = ConfigText::new("vpc.toml", "rol = 1\nrole = 2\n");
        let problems = load(Some(&bad), &BTreeMap::new()).unwrap_err();
        let text = CheckReport::new(Err(&problems), Vec::new()).text(false);
        assert!(
            text.ends_with("\nThe configuration cannot be used: 2 errors.\n"),
            "{text}"
        );

        let loaded = load(None, &BTreeMap::new()).unwrap();
        let passed = vec![
            checked("nginx -t", Verdict::Passed),
            checked(
                "headscale configtest",
                Verdict::Skipped("it is not installed here".into()),
            ),
        ];
        assert_eq!(
            CheckReport::new(Ok(&loaded), passed).text(false),
            "nginx -t: passed\nheadscale configtest: not asked, it is not installed here\n\
             The configuration can be used.\n"
        );

        let refused = checked(
            "nginx -t",
            Verdict::Failed("unknown directive\nin line 2\n".into()),
        );
        let report = CheckReport::new(Ok(&loaded), vec![refused]);
        assert_eq!(
            report.text(false),
            "nginx -t: refused\n  unknown directive\n  in line 2\n\
             The configuration cannot be used: 1 refused by a program.\n"
        );
        assert_eq!(
            serde_json::json!(report),
            serde_json::json!({
                "ok": false,
                "problems": [],
                "checkers": [{
                    "checker": "nginx -t",
                    "verdict": "failed",
                    "message": "unknown directive\nin line 2\n",
                }],
            })
        );
    }
}
