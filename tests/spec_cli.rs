//! The commands about the configuration, as their user meets them: what they print, and their exit codes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use dstack_vpc::spec;
use serde_json::Value as Json;

struct Place {
    dir: tempfile::TempDir,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join("vpc.toml");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs the program with these variables only, and a state directory that nothing has made.
    fn run(&self, config: Option<&Path>, env: &[(&str, &str)], args: &[&str]) -> Said {
        let state = self.dir.path().join("state");
        let mut command = Command::cargo_bin("dstack-vpc").unwrap();
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env.iter().copied());
        command.arg("--state-dir").arg(&state);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let output = command.args(args).output().unwrap();
        assert!(!state.exists(), "{args:?} wrote into the state directory");
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&self.dir.path().display().to_string(), "/d")
        };
        let said = Said {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        assert!(
            !said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'),
            "colours in a pipe"
        );
        said
    }
}

#[test]
fn check_says_everything_that_is_wrong_and_fails() {
    let place = Place::new();
    let config = place.file("rol = \"mesh\"\n\n[mesh]\nfront = \"niginx\"\n");
    let said = place.run(Some(&config), &[("VPC__LOG__LEVL", "debug")], &["check"]);
    assert_eq!(said.code, 1);
    for part in [
        " --> /d/vpc.toml:1:1\n",
        " --> /d/vpc.toml:4:9\n",
        "help: did you mean `role`?",
        "help: did you mean `nginx`?",
        "help: did you mean `VPC__LOG__LEVEL`?",
        "The configuration cannot be used: 3 errors.\n",
    ] {
        assert!(said.out.contains(part), "{part}\n{}", said.out);
    }

    let said = place.run(Some(&config), &[], &["check", "--json"]);
    assert_eq!(said.code, 1);
    let report: Json = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["problems"][1]["key"], "mesh.front");
    assert_eq!(
        (&report["problems"][1]["line"], &report["problems"][1]["column"]),
        (&Json::from(4), &Json::from(9))
    );
}

#[test]
fn a_file_that_is_none_is_named() {
    let place = Place::new();
    let missing = place.dir.path().join("missing.toml");
    for (config, message) in [
        (place.dir.path().to_owned(), "/d is a directory"),
        (missing, "there is no file /d/missing.toml"),
        (
            place.file(b"role = \"\xff\""),
            "/d/vpc.toml:1: byte 8 of the file is not UTF-8",
        ),
    ] {
        let said = place.run(Some(&config), &[], &["check"]);
        assert_eq!(said.code, 1, "{message}");
        assert!(said.err.contains(message), "{message}\n{}", said.err);
    }
    let junk = place.file(vec![b'#'; 10 << 20]);
    let said = place.run(Some(&junk), &[], &["check"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("/d/vpc.toml is 10 MiB long"), "{}", said.err);
}

#[test]
fn every_starter_passes_check() {
    for role in ["mesh", "server", "node", "server+node"] {
        let place = Place::new();
        let starter = place.run(None, &[], &["init", "--role", role]);
        assert_eq!(starter.code, 0, "{}", starter.err);
        let config = place.file(&starter.out);
        let said = place.run(Some(&config), &[], &["check"]);
        assert_eq!(said.code, 0, "{role}\n{}{}", said.out, said.err);
        assert!(said.out.contains("The configuration can be used"), "{}", said.out);
    }
}

/// `tests/frozen` are the examples, and the file with every key, as the first version had them. They never change.
#[test]
fn what_the_first_version_read_is_read_for_ever() {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen");
    let mut files: Vec<_> = fs::read_dir(frozen)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 8, "{files:?}");
    let assumed = [
        "app_id=5e44e40000000000000000000000000000000002",
        "gateway_domain=apps.example.com:443",
    ];
    for file in files {
        let place = Place::new();
        // Without the programs' own checkers: nginx looks up the names of upstreams.
        let text = spec::read(&file).unwrap();
        let loaded =
            spec::load(Some(&text), &BTreeMap::new()).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        let said = place.run(
            Some(&file),
            &[],
            &["render", "--assume", assumed[0], "--assume", assumed[1]],
        );
        assert_eq!(said.code, 0, "{}\n{}", file.display(), said.err);
        assert!(
            said.out.contains("# ==> supervisor/supervisord.conf"),
            "{}",
            said.out
        );
    }
    // And its variables, with no file at all.
    let env = [
        ("VPC_SERVER_ENABLED", "true"),
        ("VPC_NODE_NAME", "db-1"),
        ("VPC_NODE_TYPE", "mongodb"),
        ("VPC_ALLOWED_APPS", "5e44e40000000000000000000000000000000002"),
        ("VPC_SERVER_APP_ID", "5e44e40000000000000000000000000000000002"),
        ("VPC_SERVER_URL", "https://vpn.example.com"),
        ("VPC_SERVER_PORT", "8443"),
        ("MESH_BACKEND", "127.0.0.1:27017"),
        ("DSTACK_GATEWAY_DOMAIN", "apps.example.com:443"),
        ("DSTACK_AGENT_ADDRESS", "unix:/var/run/dstack.sock"),
        ("VPC__MESH__HTTP_LISTEN", "127.0.0.1:80"),
    ];
    let place = Place::new();
    let said = place.run(None, &env, &["check"]);
    assert!(
        said.code == 0 && !said.out.contains("warning"),
        "{}{}",
        said.out,
        said.err
    );
    let said = place.run(None, &env, &["render", "--assume", assumed[0]]);
    assert!(
        said.out.contains("https://vpn.example.com"),
        "{}{}",
        said.out,
        said.err
    );
}

#[test]
fn init_writes_down_what_the_environment_sets() {
    let place = Place::new();
    let env = [
        ("VPC_NODE_NAME", "db-1"),
        ("VPC_NODE_TYPE", ""),
        ("MESH_BACKEND", "127.0.0.1:27017"),
    ];
    let said = place.run(None, &env, &["init", "--from-env"]);
    assert_eq!(said.code, 0, "{}", said.err);
    for line in [
        "role = \"node\"",
        "name = \"db-1\"",
        "# type = \"\"",
        "upstream = [\"127.0.0.1:27017\"]",
    ] {
        assert!(said.out.lines().any(|said| said == line), "{line}\n{}", said.out);
    }
    let said = place.run(
        None,
        &[("VPC_SERVER_ENABLED", "perhaps")],
        &["init", "--from-env"],
    );
    assert_eq!(said.code, 1);
    assert!(said.err.contains("VPC_SERVER_ENABLED=perhaps"), "{}", said.err);
}

#[test]
fn schema_prints_what_lies_beside_the_examples() {
    let said = Place::new().run(None, &[], &["schema"]);
    assert_eq!(said.code, 0);
    let beside =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/vpc.schema.json")).unwrap();
    assert_eq!(said.out, beside);
}

#[test]
fn explain_tells_each_source() {
    let place = Place::new();
    let config = place.file("[mesh]\nhttp_listen = \"127.0.0.1:8081\"\n");
    let env = [
        ("VPC__LOG__LEVEL", "debug"),
        ("DSTACK_GATEWAY_DOMAIN", "apps.example.com"),
    ];
    let said = place.run(Some(&config), &env, &["explain", "--json"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let lines: Json = serde_json::from_str(&said.out).unwrap();
    let source = |key: &str| {
        let line = lines
            .as_array()
            .unwrap()
            .iter()
            .find(|line| line["key"] == key)
            .unwrap();
        line["source"].as_str().unwrap().to_owned()
    };
    assert_eq!(source("mesh.http_listen"), "/d/vpc.toml:2");
    assert_eq!(source("log.level"), "VPC__LOG__LEVEL");
    assert_eq!(source("dstack.gateway_domain"), "DSTACK_GATEWAY_DOMAIN");
    assert_eq!(source("mesh.https_listen"), "default");

    let said = place.run(Some(&config), &[], &["explain", "mesh.http_listne"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("did you mean `mesh.http_listen`?"),
        "{}",
        said.err
    );
}

/// Standard output that nobody reads is no reason for a stack trace, and one that is full is an error.
#[test]
fn output_that_cannot_be_written_is_told_or_borne() {
    let run = |args: &[&str], out: std::process::Stdio| {
        let place = Place::new();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_dstack-vpc"))
            .env_clear()
            .arg("--state-dir")
            .arg(place.dir.path())
            .args(args)
            .stdout(out)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for args in [
        &["schema"][..],
        &["init"],
        &["explain"],
        &["explain", "--json"],
        &["check", "--json"],
        &["render"],
        &["plan"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(args, writer.into()), (Some(141), String::new()), "{args:?}");

        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, err) = run(args, full.into());
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(
            err.contains("standard output cannot be written: No space left"),
            "{err}"
        );
        assert!(!err.contains("panicked"), "{err}");
    }
}

#[test]
fn explain_says_why_something_is_not_known() {
    let place = Place::new();
    let config = place.file("[dstack]\nagent = \"unix:/nowhere/a\"\nhost_shared_dir = \"/nowhere\"\n");
    let said = place.run(Some(&config), &[], &["explain", "dstack.gateway_domain"]);
    assert_eq!(said.code, 0);
    assert!(said.out.contains("here unknown"), "{}", said.out);
    assert!(said.err.contains("note: gateway: "), "{}", said.err);
    assert!(said.err.contains("/nowhere/.sys-config.json"), "{}", said.err);
    assert!(!said.err.contains("note: agent"), "{}", said.err);
    let said = place.run(Some(&config), &[], &["explain"]);
    assert!(said.err.contains("note: agent: "), "{}", said.err);
}
