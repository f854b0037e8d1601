//! Every command line that a document, a help text or an advice shows can be given.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dstack_vpc::cli;
use regex::Regex;

use super::{documents, root};

/// The words of a command line up to a comment, a pipe or a redirection; `None`: it is no call of ours.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
    let words = shlex::split(line)?;
    let ours = words
        .iter()
        .skip_while(|word| word.contains('=') && !word.starts_with('-'));
    let ours: Vec<String> = ours
        .take_while(|word| !["|", ">", "<", "&&", "&", ";"].contains(&word.as_str()))
        .cloned()
        .collect();
    (ours.len() > 1 && ours[0] == "dstack-vpc").then_some(ours)
}

/// Why it cannot be given.
pub(crate) fn refused(line: &str) -> Option<String> {
    let words = words(line)?;
    let error = cli::command().try_get_matches_from(words).err()?;
    // `--help` is answered by an error, too.
    error.use_stderr().then(|| format!("{line}\n{error}"))
}

#[test]
fn those_of_the_documents() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for document in documents() {
        let blocks = document.blocks();
        let shown = blocks.iter().flat_map(|(_, block)| block.lines());
        let spans = document.spans();
        for line in shown.chain(spans.iter().map(String::as_str)) {
            seen += usize::from(words(line).is_some());
            wrong.extend(refused(line).map(|why| format!("{}: {why}", document.name())));
        }
    }
    assert!(seen > 20, "only {seen} command lines");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn those_of_the_help() {
    for help in cli::help::ALL {
        assert!(!help.examples.is_empty(), "{}", help.command);
        for (line, _) in help.examples {
            assert!(words(line).is_some(), "{line}");
            assert_eq!(refused(line), None);
        }
    }
}

/// What messages tell people to do.
#[test]
fn those_of_the_messages() {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        let advice = Regex::new(r"`((?:sudo )?dstack-vpc [^`]*)`").unwrap();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let text = text.replace("\\\n", " ");
                let said = advice.captures_iter(&text).map(|said| said[1].to_owned());
                // What is filled in later cannot be tried here.
                found.extend(said.filter(|said| !said.contains('{')));
            }
        }
    }
    let mut said = BTreeSet::new();
    walk(&root().join("src"), &mut said);
    walk(&root().join("templates"), &mut said);
    let wrong: Vec<_> = said.iter().filter_map(|line| refused(line)).collect();
    assert!(said.len() > 10, "{said:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_make_target_that_is_named_is_one() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let call = Regex::new(r"(?:^|[ `])make ([a-z][a-z-]*)(?:[ `]|$)").unwrap();
    let mut seen = BTreeSet::new();
    for document in documents() {
        let blocks = document.blocks();
        let shown = blocks
            .iter()
            .flat_map(|(_, block)| block.lines().map(str::to_owned));
        for line in shown
            .chain(document.spans())
            .filter(|line| line.starts_with("make ") || line.contains("="))
        {
            for named in call.captures_iter(&line) {
                let target = &named[1];
                assert!(
                    makefile
                        .lines()
                        .any(|line| line.starts_with(&format!("{target}:"))),
                    "{}: make {target}",
                    document.name()
                );
                seen.insert(target.to_owned());
            }
        }
    }
    assert!(seen.len() > 3, "{seen:?}");
}
