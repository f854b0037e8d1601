//! The rendered supervisord.conf in a real supervisord.

mod rendered;
#[path = "rendered/supervisord.rs"]
mod supervisord;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use dstack_vpc::desired::{Launch, Templates, desired};
use dstack_vpc::facts::{Facts, Installed, Version};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{ChildOutput, Spec};
use rendered::{fact, mesh, program};
use supervisord::{LIMITS, Running};

/// A state directory whose programs are shell scripts that say what they were given, and wait.
struct Stand {
    dir: tempfile::TempDir,
    state: StateDir,
    facts: Facts,
    launch: Launch,
}

impl Stand {
    fn new(prefix: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let script = dir.path().join("program");
        fs::write(
            &script,
            "#!/bin/sh\nfor word in \"$@\"; do echo \"word:$word\"; done\necho complaint >&2\nexec sleep 1000\n",
        )
        .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::new(dir.path().join("state"));
        for folder in [state.run(), state.log()] {
            fs::create_dir_all(folder).unwrap();
        }
        let mut facts = rendered::facts(&state);
        facts.host.root = nix::unistd::geteuid().is_root();
        let version = Version(1, 22, 1);
        facts.programs.nginx = Some(fact(Installed {
            path: script.clone(),
            version,
        }));
        let launch = Launch {
            exe: script,
            config: None,
        };
        Self {
            dir,
            state,
            facts,
            launch,
        }
    }

    /// Makes a generation and lets `current` point to it.
    fn switch(&self, number: u32, spec: &Spec) {
        let desired = desired(
            spec,
            &self.facts,
            &self.state,
            &self.launch,
            &Templates::builtin(),
        )
        .unwrap();
        let generation = self.state.generations().join(format!("{number:06}"));
        rendered::write(&desired, &generation);
        let link = self.state.root().join("next");
        std::os::unix::fs::symlink(generation, &link).unwrap();
        fs::rename(link, self.state.current()).unwrap();
    }

    fn conf(&self) -> PathBuf {
        self.state.current().join("supervisor/supervisord.conf")
    }

    async fn start(&self, stdout: Stdio, stderr: Stdio) -> Running {
        Running::start(&self.conf(), &self.state.supervisor_socket(), stdout, stderr).await
    }
}

#[tokio::test]
async fn the_rendered_file_follows_the_link_and_gives_each_word_as_it_was() {
    let stand = Stand::new("a b'c%d\"e;f#g-");
    let mut spec = mesh();
    spec.supervisor.output = ChildOutput::Files;
    stand.switch(1, &spec);
    let running = stand.start(Stdio::null(), Stdio::null()).await;
    let client = &running.client;
    for name in ["dstack-vpc", "nginx"] {
        client.start(name, Some(LIMITS.start)).await.unwrap();
    }
    let words = |name: &str| {
        let log = stand.state.log().join(format!("{name}.out.log"));
        let text = fs::read_to_string(log).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("word:").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let root = stand.state.root().to_str().unwrap();
    assert_eq!(words("dstack-vpc"), ["--state-dir", root, "run"]);
    assert_eq!(
        words("nginx")[..2],
        ["-p".to_owned(), format!("{root}/run/nginx")]
    );
    assert!(
        words("nginx")[7].starts_with("daemon off; pid \""),
        "{:?}",
        words("nginx")
    );
    assert_eq!(client.tail_stderr("nginx", 100).await.unwrap(), "complaint\n");

    let status = Command::new(program("supervisorctl"))
        .arg("-c")
        .arg(stand.conf())
        .arg("status")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && said.contains("RUNNING"), "{said}");
    let mode = fs::metadata(stand.state.supervisor_socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    // The next generation: supervisord must read through the link again.
    spec.mesh.drain_timeout = Duration::from_secs(77);
    stand.switch(2, &spec);
    let before = client.process("dstack-vpc").await.unwrap().pid;
    let done = client
        .converge("dstack-vpc", &BTreeSet::new(), LIMITS)
        .await
        .unwrap();
    assert_eq!((done.changed, done.left_own), (vec!["nginx".to_owned()], true));
    assert_eq!(client.process("dstack-vpc").await.unwrap().pid, before);
    assert!(stand.dir.path().exists());
}

#[tokio::test]
async fn output_reaches_a_pipe_a_file_and_nothing() {
    let stand = Stand::new("out-");
    stand.switch(1, &mesh());
    let complete = |text: &str| text.contains("word:run") && text.contains("daemon off");

    let mut running = stand.start(Stdio::piped(), Stdio::piped()).await;
    for name in ["dstack-vpc", "nginx"] {
        running.client.start(name, Some(LIMITS.start)).await.unwrap();
        // A pipe cannot be read back; asking must not hang supervisord.
        assert_eq!(running.client.tail_stderr(name, 100).await.unwrap(), "");
    }
    let (mut stdout, mut stderr) = (
        running.child.stdout.take().unwrap(),
        running.child.stderr.take().unwrap(),
    );
    drop(running);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    assert!(complete(&out), "{out}");
    assert_eq!(err.matches("complaint").count(), 2, "{err}");

    let path = stand.dir.path().join("both");
    fs::write(&path, "from before\n").unwrap();
    let file = || Stdio::from(fs::OpenOptions::new().append(true).open(&path).unwrap());
    let running = stand.start(file(), file()).await;
    for name in ["dstack-vpc", "nginx"] {
        running.client.start(name, Some(LIMITS.start)).await.unwrap();
    }
    drop(running);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("from before\n") && complete(&text), "{text}");

    let running = stand.start(Stdio::null(), Stdio::null()).await;
    for name in ["dstack-vpc", "nginx"] {
        running.client.start(name, Some(LIMITS.start)).await.unwrap();
    }
}
