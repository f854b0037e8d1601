//! The difference between two sets of files.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::report::visible;
use super::secrets::hide;
use super::{Plan, Present, Report, back, plan};
use crate::desired::{Desired, File, Launch, Reader, Templates, desired};
use crate::facts::Facts;
use crate::paths::StateDir;
use crate::spec::Spec;

type Files = BTreeMap<String, Vec<u8>>;

/// `data` is files, each after a line that says which: `=== old nginx/nginx.conf` is there, `=== new …` is wanted. What
/// the plan says has to change makes the one of the other, and what it shows does, too.
pub fn plan_diff(data: &[u8]) {
    let (old, new) = files(data);
    let mut wanted = DESIRED.clone();
    let file = |(path, bytes): (&String, &Vec<u8>)| {
        let (bytes, reader) = (bytes.clone(), Reader::of(path));
        (
            path.clone(),
            File {
                mode: 0o644,
                bytes,
                reader,
            },
        )
    };
    wanted.files = new.iter().map(file).collect();
    let present = |files: &Files| Present {
        generation: Some(1),
        files: files.clone(),
        ..Present::default()
    };

    let forth = plan(&wanted, &present(&old));
    assert_eq!(carried_out(&forth, &old), new);
    assert!(plan(&wanted, &present(&new)).files.is_empty());
    assert_eq!(carried_out(&back(&present(&new), &old), &new), old);

    let report = Report::from(&forth);
    assert_eq!(report.files.len(), forth.files.len());
    for (shown, change) in report.files.iter().zip(&forth.files) {
        let text =
            |bytes: &Option<Vec<u8>>| visible(&String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()));
        let (before, known) = hide(&text(&change.before), None);
        let (after, _) = hide(&text(&change.after), change.before.as_ref().map(|_| &known));
        assert_eq!(shown.diff.is_empty(), before == after, "{}", shown.diff);
        assert_eq!(patched(&before, &shown.diff), after, "{}", shown.diff);
    }
    let shown = report.to_text();
    assert!(
        !shown.contains(|c: char| c.is_control() && !"\n\t".contains(c)),
        "{shown:?}"
    );
}

/// Nothing in it but the programs and listeners of a mesh role.
static DESIRED: LazyLock<Desired> = LazyLock::new(|| {
    let launch = Launch {
        exe: "/dstack-vpc".into(),
        config: None,
    };
    let state = StateDir::new("/s");
    desired(
        &Spec::default(),
        &Facts::default(),
        &state,
        &launch,
        &Templates::builtin(),
    )
    .unwrap()
});

fn files(data: &[u8]) -> (Files, Files) {
    let (mut old, mut new) = (Files::new(), Files::new());
    let mut into = None;
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let head = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.strip_prefix("=== "));
        match head.map(str::trim_end).and_then(|head| head.split_once(' ')) {
            Some((which @ ("old" | "new"), path)) => {
                let files = if which == "old" { &mut old } else { &mut new };
                into = Some(files.entry(path.to_owned()).or_default());
            }
            _ => into.iter_mut().for_each(|file| file.extend(line)),
        }
    }
    (old, new)
}

fn carried_out(plan: &Plan, files: &Files) -> Files {
    let mut files = files.clone();
    for change in &plan.files {
        assert_eq!(files.get(&change.path), change.before.as_ref());
        assert_ne!(change.before, change.after);
        match &change.after {
            Some(bytes) => files.insert(change.path.clone(), bytes.clone()),
            None => files.remove(&change.path),
        };
    }
    files
}

/// `text` with a unified diff carried out, as `patch` would, but only where it fits exactly.
fn patched(text: &str, diff: &str) -> String {
    let mut old = text.split_inclusive('\n').peekable();
    let mut at = 0;
    let mut new = String::new();
    let mut lines = diff.split_inclusive('\n').skip(2).peekable();
    while let Some(line) = lines.next() {
        if let Some(hunk) = line.strip_prefix("@@ -") {
            let range = hunk.split(' ').next().unwrap();
            let (start, length) = range.split_once(',').unwrap_or((range, "1"));
            let (start, length): (usize, usize) = (start.parse().unwrap(), length.parse().unwrap());
            let start = if length == 0 { start } else { start - 1 };
            while at < start {
                new.push_str(old.next().unwrap());
                at += 1;
            }
            continue;
        }
        let (kind, mut content) = line.split_at(1);
        if lines.next_if(|next| next.starts_with('\\')).is_some() {
            content = content.strip_suffix('\n').unwrap();
        }
        if kind != "+" {
            assert_eq!(old.next(), Some(content));
            at += 1;
        }
        if kind != "-" {
            new.push_str(content);
        }
    }
    new.extend(old);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Of five thousand backends each has another port: as many small changes in a file of 200,000 lines. And a file
    /// that has nothing in common with the one before.
    #[test]
    fn large_changes_are_shown_soon() {
        let backends = |port: u16| -> String {
            let lines = (0..5_000).map(|n| {
                format!(
                    "upstream b{n} {{\n    server \"a:{port}\";\n{}}}\n",
                    "    x y;\n".repeat(40)
                )
            });
            lines.collect()
        };
        let lines = |word: &str| -> String { (0..50_000).map(|n| format!("{word} {n}\n")).collect() };
        for (what, old, new) in [
            ("small changes", backends(1), backends(2)),
            ("another file", lines("a"), lines("b")),
        ] {
            let begun = Instant::now();
            plan_diff(format!("=== old nginx/nginx.conf\n{old}=== new nginx/nginx.conf\n{new}").as_bytes());
            let took = begun.elapsed();
            println!("{what}: {took:?}");
            assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        }
    }
}
