//! Every `vpc.toml` that a document shows passes `check`.

use std::fs;

use super::{common, documents};

#[test]
fn each_that_is_shown_passes_check() {
    let dir = tempfile::tempdir().unwrap();
    let (mut seen, mut wrong) = (0, Vec::new());
    for document in documents() {
        for (_, block) in document
            .blocks()
            .iter()
            .filter(|(language, _)| *language == "toml")
        {
            seen += 1;
            let file = dir.path().join("vpc.toml");
            fs::write(&file, block).unwrap();
            let mut check = std::process::Command::new(common::binary());
            check
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default());
            check
                .arg("--config")
                .arg(&file)
                .arg("--state-dir")
                .arg(dir.path().join("state"))
                .arg("check");
            let said = check.output().unwrap();
            if !said.status.success() {
                let said = [said.stdout, said.stderr].concat();
                wrong.push(format!(
                    "{}: {block}{}",
                    document.name(),
                    String::from_utf8_lossy(&said)
                ));
            }
        }
    }
    assert!(seen >= 5, "only {seen} blocks");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
