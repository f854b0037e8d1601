//! What `check` says: everything that is wrong with the configuration, and what its consumers object to.

use std::process::ExitCode;

use serde::Serialize;

use crate::spec::{Loaded, Problems, Severity};

/// Everything `check` found.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    problems: &'a Problems,
    objections: Vec<Objection<'a>>,
}

/// What a program has against the file that was rendered for it.
#[derive(Debug, Serialize)]
struct Objection<'a> {
    program: &'a str,
    message: &'a str,
}

/// Says why a configuration cannot be loaded; exit code 1.
pub fn refused(problems: &Problems, json: bool) -> ExitCode {
    print(
        &Report {
            ok: false,
            problems,
            objections: Vec::new(),
        },
        json,
    )
}

/// Says what is doubtful about a configuration that can be loaded, and what the programs that will read the
/// rendered files object to, in their own words; exit code 1 if they do.
pub fn accepted(loaded: &Loaded, objections: &[(&str, String)], json: bool) -> ExitCode {
    let objections: Vec<_> = objections
        .iter()
        .map(|(program, message)| Objection {
            program,
            message: message.trim(),
        })
        .collect();
    print(
        &Report {
            ok: objections.is_empty(),
            problems: &loaded.warnings,
            objections,
        },
        json,
    )
}

fn print(report: &Report<'_>, json: bool) -> ExitCode {
    match json {
        // Strings, numbers and lists of them: this cannot fail.
        true => println!("{:#}", serde_json::json!(report)),
        false => anstream::print!("{}", text(report)),
    }
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// For a person; the last line sums it up.
fn text(report: &Report<'_>) -> String {
    // Colours are taken out again where standard output is no terminal.
    let mut out = report.problems.render(true);
    for Objection { program, message } in &report.objections {
        out += &format!("{program} refuses the file rendered for it:\n");
        out.extend(message.lines().map(|line| format!("  {line}\n")));
        out.push('\n');
    }
    let count = |severity| {
        report
            .problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .count()
    };
    let counts: Vec<String> = [
        (count(Severity::Error), "error"),
        (report.objections.len(), "objection"),
        (count(Severity::Warning), "warning"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" }))
    .collect();
    let verdict = if report.ok {
        "the configuration can be used"
    } else {
        "the configuration cannot be used"
    };
    out + &match counts.is_empty() {
        true => format!("{verdict}\n"),
        false => format!("{verdict}: {}\n", counts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{ConfigText, load};

    fn plain(report: &Report<'_>) -> String {
        anstream::adapter::strip_str(&text(report)).to_string()
    }

    #[test]
    fn the_last_line_sums_it_up() {
        let bad = ConfigText::new("vpc.toml", "rol = 1\nrole = 2\n");
        let problems = load(Some(&bad), &BTreeMap::new()).unwrap_err();
        let report = Report {
            ok: false,
            problems: &problems,
            objections: Vec::new(),
        };
        assert!(
            plain(&report).ends_with("\nthe configuration cannot be used: 2 errors\n"),
            "{}",
            plain(&report)
        );

        let loaded = load(None, &BTreeMap::new()).unwrap();
        let report = Report {
            ok: true,
            problems: &loaded.warnings,
            objections: Vec::new(),
        };
        assert_eq!(plain(&report), "the configuration can be used\n");

        let objections = vec![Objection {
            program: "nginx",
            message: "unknown directive\nin line 2",
        }];
        let report = Report {
            ok: false,
            problems: &loaded.warnings,
            objections,
        };
        assert_eq!(
            plain(&report),
            "nginx refuses the file rendered for it:\n  unknown directive\n  in line 2\n\n\
             the configuration cannot be used: 1 objection\n"
        );
        let said = serde_json::json!(report);
        assert_eq!(said["objections"][0]["program"], "nginx");
        assert_eq!(said["ok"], false);
    }
}
