//! The documents are true: what is made from the code is current, every link leads somewhere, every `vpc.toml` that is
//! shown passes `check`, and every command line that is shown is one.
//!
//! `UPDATE_GOLDEN=1 cargo test --test documents` writes what is made anew.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

mod commands;
mod errors;
mod help;
mod http_api;
mod links;
mod manual;
mod picture;
mod shells;
mod vpc_toml;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file of the repository.
struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Its path from the root, for messages.
    fn name(&self) -> String {
        self.path
            .strip_prefix(root())
            .unwrap_or(&self.path)
            .display()
            .to_string()
    }

    /// Its fenced blocks, as (language, text).
    fn blocks(&self) -> Vec<(&str, String)> {
        let mut blocks: Vec<(&str, String)> = Vec::new();
        let mut inside = false;
        for line in self.text.lines() {
            match (line.trim_start().strip_prefix("```"), inside) {
                (Some(language), false) => blocks.push((language.trim(), String::new())),
                (Some(_), true) => {}
                (None, true) => {
                    let (_, text) = blocks.last_mut().expect("one was opened");
                    *text += line;
                    text.push('\n');
                    continue;
                }
                (None, false) => continue,
            }
            inside = !inside;
        }
        blocks
    }

    /// Its text without fenced blocks.
    fn prose(&self) -> String {
        let parts = self.text.split("```").step_by(2);
        parts.collect::<Vec<_>>().join("\n")
    }

    /// What stands between backticks in its prose, without line breaks.
    fn spans(&self) -> Vec<String> {
        let prose = self.prose();
        let spans = prose.split('`').skip(1).step_by(2);
        spans
            .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }
}

/// Every Markdown file of the repository.
fn documents() -> Vec<Document> {
    fn walk(folder: &Path, found: &mut Vec<Document>) {
        for entry in fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry"))
        {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type().expect("a type").is_dir() {
                walk(&path, found);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).expect("a text");
                found.push(Document { path, text });
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    assert!(found.len() > 10, "only {} documents", found.len());
    found
}

/// Holds a file of the repository against what the code makes of it, or writes it anew.
fn current(path: &str, made: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, made).expect("written");
    }
    let stands = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        stands,
        made,
        "{}: run UPDATE_GOLDEN=1 cargo test --test documents",
        path.display()
    );
}

/// The same for what stands in a document between `<!-- name: … -->` and `<!-- end -->`, for each name.
fn parts(path: &str, parts: &[(&str, String)]) {
    let mut text = fs::read_to_string(root().join(path)).expect("the document");
    for (name, made) in parts {
        let begin = text.find(&format!("<!-- {name}: ")).expect(name);
        let begin = begin + text[begin..].find("-->\n").expect("the end of the mark") + "-->\n".len();
        let end = begin + text[begin..].find("<!-- end -->").expect("the end of the part");
        text.replace_range(begin..end, &format!("\n{}\n\n", made.trim()));
    }
    current(path, &text);
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}
