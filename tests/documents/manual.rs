//! The manual pages, `docs/man`, are made from the commands.

use dstack_vpc::cli;

use super::{current, root};

#[test]
fn the_manual_pages_are_current() {
    let made = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(cli::command(), made.path()).unwrap();
    let names = |folder: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let pages = names(made.path());
    assert!(pages.contains(&"dstack-vpc-status.1".to_owned()), "{pages:?}");
    for page in &pages {
        let text = std::fs::read_to_string(made.path().join(page)).unwrap();
        current(&format!("docs/man/{page}"), &text);
    }
    // A command that is no more has no page.
    assert_eq!(names(&root().join("docs/man")), pages);
}
