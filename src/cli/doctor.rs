//! `doctor`: what will not work on this machine, and how to mend it. Exit 1 when there is an error.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::{Context, block_on, out};
use crate::doctor::{Finding, Mend, Report, Severity, examine, modules};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Also tell what was looked at and is well
    #[arg(long, short)]
    verbose: bool,
    /// First load the netfilter modules that the kernel lacks from tailscale.modules_dir (as root)
    #[arg(long)]
    load_modules: bool,
}

pub(super) fn doctor(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = context.source().load();
    if args.load_modules {
        let spec = &loaded.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?.spec;
        for path in modules::load(spec.tailscale.modules_dir.as_deref())? {
            out::aside(format_args!("loaded {}", path.display()));
        }
    }
    let report = block_on(examine(loaded.as_ref().map_err(String::as_str), &context.state))?;
    match args.json {
        true => out::line(serde_json::to_string_pretty(&report)?)?,
        false => out::print(text(&report, args.verbose))?,
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

const WIDTH: usize = 80;
const INDENT: usize = 9;
/// Of the lines of a piece of advice after its first.
const HANGING: usize = INDENT + 2;

/// `verbose` also tells what is well.
fn text(report: &Report, verbose: bool) -> String {
    let told = report
        .findings
        .iter()
        .filter(|finding| verbose || finding.severity != Severity::Ok);
    let mut text: String = told.map(finding_text).collect();
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let number = |count, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let well = number(count(Severity::Ok), "thing");
    text += &match (errors, warnings) {
        (0, 0) => format!("{well} looked at, and nothing found that will not work\n"),
        _ => format!(
            "{}, {}; {well} well{}\n",
            number(errors, "error"),
            number(warnings, "warning"),
            if verbose { "" } else { " (--verbose lists them)" }
        ),
    };
    text
}

fn finding_text(finding: &Finding) -> String {
    let (style, word) = match finding.severity {
        Severity::Error => (AnsiColor::Red.on_default().bold(), "error"),
        Severity::Warning => (AnsiColor::Yellow.on_default().bold(), "warning"),
        Severity::Note => (Style::new().bold(), "note"),
        Severity::Ok => (AnsiColor::Green.on_default(), "ok"),
    };
    let mut text = format!("{style}{word:<8}{style:#} ");
    text += out::wrapped(&finding.what, INDENT, WIDTH).trim_start();
    text += &out::wrapped(&finding.why, INDENT, WIDTH);
    for step in &finding.mend {
        let (mark, step) = match step {
            Mend::Do(advice) => ('→', out::wrapped(advice, HANGING, WIDTH)),
            // Whole, to be copied.
            Mend::Run(command) => ('$', format!("{command}\n")),
        };
        text += &format!("{:INDENT$}{mark} {}", "", step.trim_start());
    }
    if finding.severity != Severity::Ok {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, what: &str) -> Finding {
        Finding {
            check: "test",
            severity,
            what: what.to_owned(),
            why: String::new(),
            mend: Vec::new(),
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_mends_it_and_what_is_well_on_request() {
        let error = Finding {
            why: "so it matters".to_owned(),
            mend: vec![
                Mend::Do("do this ".repeat(10)),
                Mend::Run(format!("run{}", " this".repeat(20))),
            ],
            ..finding(Severity::Error, &"broken ".repeat(20))
        };
        let report = Report {
            ok: false,
            findings: vec![
                error,
                finding(Severity::Note, "good to know"),
                finding(Severity::Ok, "this is well"),
            ],
        };
        let plain = anstream::adapter::strip_str(&text(&report, false)).to_string();
        assert_eq!(
            plain,
            "error    broken broken broken broken broken broken broken broken broken broken\n\
             \x20        broken broken broken broken broken broken broken broken broken broken\n\
             \x20        so it matters\n\
             \x20        → do this do this do this do this do this do this do this do this do\n\
             \x20          this do this\n\
             \x20        $ run this this this this this this this this this this this this this this this this \
             this this this this\n\n\
             note     good to know\n\n\
             1 error, 0 warnings; 1 thing well (--verbose lists them)\n"
        );
        assert!(text(&report, true).contains("this is well"));
        let well = Report {
            ok: true,
            findings: vec![finding(Severity::Ok, "this is well")],
        };
        assert_eq!(
            text(&well, false),
            "1 thing looked at, and nothing found that will not work\n"
        );
    }
}
