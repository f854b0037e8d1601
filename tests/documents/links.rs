//! Links and paths lead to what is there.

use std::collections::BTreeSet;
use std::fs;

use regex::Regex;

use super::{Document, documents, root};

/// The names by which headings are reached, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let document = Document {
        path: root().to_owned(),
        text: text.to_owned(),
    };
    let prose = document.prose();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let link = Regex::new(r#"\]\(([^)\s]+)\)|(?:src|href)="([^"]+)""#).unwrap();
    let (mut seen, mut broken) = (0, Vec::new());
    for document in documents() {
        for found in link.captures_iter(&document.prose()) {
            let to = found.get(1).or(found.get(2)).unwrap().as_str();
            if to.contains("://") || to.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, anchor) = to.split_once('#').unwrap_or((to, ""));
            let path = match file {
                "" => document.path.clone(),
                _ => document.path.parent().unwrap().join(file),
            };
            let there = match anchor {
                "" => path.exists(),
                _ => fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !there {
                broken.push(format!("{}: {to}", document.name()));
            }
        }
    }
    assert!(seen > 20, "only {seen} links");
    assert!(broken.is_empty(), "these lead nowhere:\n{}", broken.join("\n"));
}

/// `src/mesh/hop`, `tests/faults`, …: folders and files that a document names.
#[test]
fn every_path_of_the_repository_that_is_named_is_there() {
    let ours = Regex::new(r"^(src|tests|docs|templates|scripts|examples|fuzz|benches)/[\w./-]*$").unwrap();
    let (mut seen, mut missing) = (0, Vec::new());
    for document in documents() {
        for span in document.spans().iter().filter(|span| ours.is_match(span)) {
            seen += 1;
            let beside = document.path.parent().unwrap().join(span);
            if !root().join(span).exists() && !beside.exists() {
                missing.push(format!("{}: {span}", document.name()));
            }
        }
    }
    assert!(seen > 10, "only {seen} paths");
    assert!(missing.is_empty(), "these are not there:\n{}", missing.join("\n"));
}

#[test]
fn every_folder_of_the_source_has_its_line_in_the_architecture() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let described: BTreeSet<&str> = {
        let table = page.lines().skip_while(|line| !line.starts_with("| folder |"));
        let rows = table.skip(2).take_while(|line| line.starts_with("| `"));
        rows.flat_map(|row| {
            row.split('|')
                .nth(1)
                .unwrap_or_default()
                .split('`')
                .skip(1)
                .step_by(2)
        })
        .collect()
    };
    for (folder, prefix) in [("src", ""), ("src/mesh", "mesh/")] {
        for entry in fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap) {
            let name = format!("{prefix}{}", entry.file_name().display());
            if entry.file_type().unwrap().is_dir() {
                assert!(described.contains(name.as_str()), "src/{name} is not described");
            }
        }
    }
}

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut seen = 0;
    for heading in ["## Threats", "## What was wrong"] {
        let table = page.split(heading).nth(1).expect(heading);
        let rows = table
            .split("\n## ")
            .next()
            .unwrap()
            .lines()
            .filter(|line| line.starts_with("| "));
        for row in rows.skip(1) {
            let tests = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
            for test in tests.split('`').skip(1).step_by(2) {
                seen += 1;
                let (file, folder) = (format!("tests/{test}.rs"), format!("tests/{test}/main.rs"));
                assert!(
                    root().join(file).exists() || root().join(folder).exists(),
                    "{row}"
                );
            }
        }
    }
    assert!(seen > 20, "only {seen}");
}
