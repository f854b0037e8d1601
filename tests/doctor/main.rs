//! `dstack-vpc doctor`: each thing that can be wrong with a machine, made wrong.

mod apps;
mod etcd;
mod machine;
mod network;
mod platform;
mod state;
#[path = "../common/tls.rs"]
#[allow(dead_code, unreachable_pub)]
mod tls;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use dstack_vpc::agent::dev::{DevAgent, Faults, Machine, Options, Pki};
use dstack_vpc::names::AppId;
use dstack_vpc::spec::AgentAddr;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// The app that the machine is.
const OWN_APP: AppId = AppId::from_bytes([0xa1; 20]);

/// A machine on which nothing runs: a configuration, a state directory, an agent and what the host says.
struct Patient {
    dir: TempDir,
    toml: String,
}

/// `(severity, what, mend)` of every finding of one check.
type Found = Vec<(String, String, String)>;

struct Report {
    exit: Option<i32>,
    json: Value,
}

impl Patient {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!(
            "[dstack]\nagent = \"unix:{0}/agent.sock\"\nhost_shared_dir = \"{0}\"\n",
            dir.path().display()
        );
        Self { dir, toml }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds lines to vpc.toml; those before the first section go first.
    fn with(mut self, first: &str, more: &str) -> Self {
        self.toml = format!("{first}\n{}{more}\n", self.toml);
        self
    }

    async fn agent(&self, faults: Faults) -> DevAgent {
        DevAgent::start(Options {
            pki: Pki::load_or_create(self.dir.path()).unwrap(),
            machines: vec![Machine {
                listen: AgentAddr::Unix(self.path("agent.sock")),
                app_id: OWN_APP,
                instance_id: None,
                faults,
            }],
            gateway: Some((
                ([127, 0, 0, 1], 0).into(),
                "apps.example.com:443".parse().unwrap(),
            )),
        })
        .await
        .unwrap()
    }

    fn host_says(&self, gateways: &[String]) {
        let config = serde_json::json!({ "gateway_urls": gateways });
        std::fs::write(self.path(".sys-config.json"), config.to_string()).unwrap();
    }

    fn command(&self, before: &[&str], args: &[&str]) -> Command {
        self.command_of(assert_cmd::cargo::cargo_bin!("dstack-vpc"), before, args)
    }

    fn command_of(&self, binary: &Path, before: &[&str], args: &[&str]) -> Command {
        std::fs::write(self.path("vpc.toml"), &self.toml).unwrap();
        let words: Vec<_> = before
            .iter()
            .copied()
            .map(std::ffi::OsStr::new)
            .chain([binary.as_os_str()])
            .collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--config".as_ref(), self.path("vpc.toml").as_os_str()])
            .args(["--state-dir".as_ref(), self.path("state").as_os_str()])
            .arg("doctor")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    async fn examine_as(&self, before: &[&str]) -> Report {
        Report::from(self.command(before, &["--json"]).output().await.unwrap())
    }

    async fn examine(&self) -> Report {
        self.examine_as(&[]).await
    }

    /// In mounts of its own, and other namespaces if asked for, that a script has changed before.
    async fn examine_in(&self, others: &[&str], script: &str) -> Report {
        assert!(
            nix::unistd::geteuid().is_root(),
            "only root can change mounts and networks: run this test as root"
        );
        let script = format!("mount --make-rprivate /; {script}; exec \"$@\"");
        let mut words = vec!["unshare", "--mount"];
        words.extend(others);
        words.extend(["sh", "-ec", &script, "sh"]);
        self.examine_as(&words).await
    }
}

impl From<Output> for Report {
    fn from(output: Output) -> Self {
        let error = String::from_utf8_lossy(&output.stderr);
        Self {
            exit: output.status.code(),
            json: serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}")),
        }
    }
}

impl Report {
    fn of(&self, check: &str) -> Found {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .filter(|finding| finding["check"] == check)
            .map(|finding| {
                let steps = finding["mend"].as_array().unwrap().iter();
                let mend: Vec<_> = steps
                    .map(|step| {
                        step.get("run")
                            .map_or_else(|| text(&step["do"]), |run| format!("$ {}", text(run)))
                    })
                    .collect();
                let (severity, what) = (text(&finding["severity"]), text(&finding["what"]));
                if severity != "ok" && severity != "note" {
                    assert!(!mend.is_empty() && finding["why"] != "", "no advice: {finding}");
                }
                (severity, what, mend.join("\n"))
            });
        found.collect()
    }

    /// The one finding of a check: its severity, and words of it.
    #[track_caller]
    fn says(&self, check: &str, severity: &str, words: &str) -> String {
        let found = self.of(check);
        let one = found
            .iter()
            .find(|(how, what, _)| how == severity && what.contains(words));
        match one {
            Some((_, _, mend)) => mend.clone(),
            None => panic!(
                "no {severity} {check:?} with {words:?} in {found:#?}\n{:#}",
                self.json
            ),
        }
    }
}

#[tokio::test]
async fn people_get_sentences_and_no_colours_in_a_pipe() {
    let patient = Patient::new();
    let output = patient.command(&[], &[]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("error    "), "{text}");
    assert!(
        text.contains("→ ") && text.contains("(--verbose lists them)"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let output = patient.command(&[], &["--verbose"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nok       the state directory"), "{text}");
}
