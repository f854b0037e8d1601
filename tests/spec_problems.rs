//! What a user is told about a bad configuration, whole. Each `tests/problems/<case>.toml` is loaded, with the
//! variables that its lines `# env NAME=value` set, and what comes of it stands beside it.
//! `UPDATE_GOLDEN=1 cargo test --test spec_problems` writes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dstack_vpc::spec::{ConfigText, Problems, load};

fn problems(text: &str) -> Result<Problems, Problems> {
    let env: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# env ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    load(Some(&ConfigText::new("vpc.toml", text)), &env).map(|loaded| loaded.warnings)
}

#[test]
fn each_bad_file_is_explained() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/problems");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "toml") {
            continue;
        }
        cases += 1;
        let text = fs::read_to_string(&path).unwrap();
        let (verdict, found) = match problems(&text) {
            Ok(warnings) => ("usable", warnings),
            Err(problems) => ("refused", problems),
        };
        let said = format!("{}{verdict}: {}\n", found.render(false), found.len());
        assert!(
            !said.contains("hunter2"),
            "{}: a password is repeated",
            path.display()
        );
        assert!(
            !serde_json::to_string(&found).unwrap().contains("hunter2"),
            "{}",
            path.display()
        );
        let golden = path.with_extension("txt");
        if update {
            fs::write(&golden, &said).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != said {
            wrong.push(format!("{}\n{said}", path.display()));
        }
    }
    assert!(cases >= 20, "only {cases} cases");
    assert!(
        wrong.is_empty(),
        "run UPDATE_GOLDEN=1 cargo test --test spec_problems and read the difference\n{}",
        wrong.join("\n")
    );
}

#[test]
fn a_machine_gets_the_place_in_fields() {
    let text = "role = \"mesh\"\n\n[mesh]\nclinet_listen = \"127.0.0.1:1\"\n";
    let said = serde_json::to_value(problems(text).unwrap_err()).unwrap();
    assert_eq!(
        said,
        serde_json::json!([{
            "severity": "error",
            "key": "mesh.clinet_listen",
            "file": "vpc.toml",
            "line": 4,
            "column": 1,
            "variable": null,
            "message": "there is no key `clinet_listen` in [mesh]",
            "expected": "unknown key",
            "help": "did you mean `client_listen`?",
        }])
    );
}

#[test]
fn colour_only_when_asked() {
    let found = problems("rol = 1").unwrap_err();
    assert!(!found.render(false).contains('\u{1b}'));
    assert!(found.render(true).contains('\u{1b}'));
}
