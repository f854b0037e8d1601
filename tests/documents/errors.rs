//! `docs/errors.md` lists every code, reason and exit status that there is.

use std::fmt::Write as _;

use dstack_vpc::cli::help;
use dstack_vpc::codes;
use dstack_vpc::reconcile::reasons;

use super::{cell, parts};

#[test]
fn the_page_of_errors_is_current() {
    parts(
        "docs/errors.md",
        &[
            ("exits", exits()),
            ("reasons", conditions()),
            ("codes", answers()),
        ],
    );
}

fn exits() -> String {
    let mut out = "| command | status | means |\n|---|---|---|\n".to_owned();
    let everywhere = help::EVERYWHERE.iter().map(|exit| ("any".to_owned(), exit));
    let own = help::ALL.iter();
    let own = own.flat_map(|help| {
        help.exits
            .iter()
            .map(|exit| (format!("`{}`", help.command), exit))
    });
    for (command, (status, when)) in everywhere.chain(own) {
        let _ = writeln!(out, "| {command} | {status} | {} |", cell(when));
    }
    out
}

fn conditions() -> String {
    let mut out = "| condition | reason | status | means | what to do |\n|---|---|---|---|---|\n".to_owned();
    for reason in reasons::ALL {
        let status = if reason.holds { "True" } else { "False" };
        let _ = writeln!(
            out,
            "| `{:?}` | `{}` | {status} | {} | {} |",
            reason.of,
            reason.word,
            cell(reason.means),
            cell(reason.mend)
        );
    }
    let _ = writeln!(
        out,
        "| any | `{}` | Unknown | the first reconcile has not ended | wait; the log if it stays so |",
        reasons::STARTING
    );
    out
}

fn answers() -> String {
    let mut out = String::new();
    for (place, codes) in codes::ALL {
        let _ = writeln!(
            out,
            "### {place}\n\n| code | status | means | what to look at |\n|---|---|---|---|"
        );
        for code in *codes {
            let status = code.status().map_or("–".to_owned(), |status| status.to_string());
            let (means, look) = (cell(code.means()), cell(code.look()));
            let _ = writeln!(out, "| `{}` | {status} | {means} | {look} |", code.name());
        }
        out.push('\n');
    }
    out
}
