//! The completions work in the shells that they are for.

use std::process::Command;

use super::common;

/// What a shell answers to a script, beside the completions for it.
fn shell(name: &str, arguments: &[&str], script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(common::binary())
        .args(["completions", name])
        .output()
        .unwrap();
    assert!(made.status.success());
    std::fs::write(dir.path().join("_dstack-vpc"), &made.stdout).unwrap();
    let mut command = Command::new(name);
    command
        .args(arguments)
        .arg(script)
        .current_dir(dir.path())
        .env("HOME", dir.path());
    let said = command
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}. Run `make setup`"));
    assert!(
        said.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_options() {
    let ask = |words: &str, last: usize| {
        let script = format!(
            ". ./_dstack-vpc\nCOMP_WORDS=({words})\nCOMP_CWORD={last}\n\
             $(complete -p dstack-vpc | sed 's/.* -F \\([^ ]*\\) .*/\\1/') dstack-vpc \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{last} - 1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        shell("bash", &["--norc", "-c"], &script)
    };
    assert_eq!(ask("dstack-vpc sta", 1).trim(), "status");
    assert_eq!(ask("dstack-vpc plan --js", 2).trim(), "--json");
    assert!(ask("dstack-vpc init --role ''", 3).contains("server+node"));
}

#[test]
fn zsh_loads_them() {
    let script = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -D -u; print $_comps[dstack-vpc]; \
        autoload +X -U _dstack-vpc; which _dstack-vpc | grep -c status";
    let said = shell("zsh", &["-f", "-c"], script);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("_dstack-vpc"), "{said}");
    assert!(lines.next().is_some_and(|count| count != "0"), "{said}");
}

#[test]
fn fish_completes_commands() {
    let script = "source ./_dstack-vpc; complete -C 'dstack-vpc sta'";
    let said = shell("fish", &["--no-config", "-c"], script);
    assert!(said.starts_with("status\t"), "{said}");
}
