//! The client and the rendered supervisord.conf against a real supervisord.

mod rendered;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dstack_vpc::desired::{Launch, Templates, desired};
use dstack_vpc::facts::{Facts, Installed, Version};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{ChildOutput, Spec};
use dstack_vpc::supervisor::{Converged, Fault, Limits, State, Supervisor, SupervisorError};
use rendered::{fact, mesh, program};

const LIMITS: Limits = Limits {
    start: Duration::from_secs(10),
    stop: Duration::from_secs(10),
};

/// A supervisord of our own in the foreground; it and its children end with this value.
struct Running {
    child: Child,
    client: Supervisor,
}

impl Running {
    async fn start(conf: &Path, socket: &Path, stdout: Stdio, stderr: Stdio) -> Self {
        let mut child = Command::new(program("supervisord"))
            .arg("-c")
            .arg(conf)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let client = Supervisor::new(socket);
        for _ in 0..200 {
            if client.alive().await.is_ok() {
                return Self { child, client };
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("supervisord ended with {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        child.kill().unwrap();
        panic!("supervisord does not answer");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A configuration of shell one-liners, rewritten at will.
struct Hand {
    dir: tempfile::TempDir,
}

impl Hand {
    fn new(programs: &[(&str, &str)]) -> Self {
        let hand = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        hand.write(programs);
        hand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, programs: &[(&str, &str)]) {
        let dir = self.dir.path().display();
        let mut text = format!(
            "[unix_http_server]\nfile={dir}/s.sock\nchmod=0700\n[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisord]\nnodaemon=true\npidfile={dir}/pid\nlogfile={dir}/log\nuser=root\n"
        );
        if !nix::unistd::geteuid().is_root() {
            text = text.replace("user=root\n", "");
        }
        for (name, script) in programs {
            text += &format!(
                "[program:{name}]\ncommand=/bin/sh -c '{script}'\nstartretries=1\nkillasgroup=true\n\
                 stdout_logfile={dir}/{name}.out\nstderr_logfile={dir}/{name}.err\n"
            );
        }
        fs::write(self.path("conf"), text).unwrap();
    }

    async fn start(&self) -> Running {
        Running::start(
            &self.path("conf"),
            &self.path("s.sock"),
            Stdio::null(),
            Stdio::null(),
        )
        .await
    }
}

const SLEEP: &str = "exec sleep 1000";
const SLEEP_LONGER: &str = "exec sleep 2000";

#[tokio::test]
async fn programs_are_seen_started_signalled_and_stopped() {
    let hand = Hand::new(&[
        ("a", SLEEP),
        ("b", "trap \"echo heard >&2\" HUP; while :; do sleep 0.05; done"),
    ]);
    let running = hand.start().await;
    let client = &running.client;
    client.start("a", Some(LIMITS.start)).await.unwrap();
    client.start("b", Some(LIMITS.start)).await.unwrap();
    assert_eq!(client.pid().await.unwrap(), running.child.id() as i32);

    let all = client.all().await.unwrap();
    let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    for info in &all {
        assert_eq!(
            (info.state, info.group.as_str()),
            (State::Running, info.name.as_str())
        );
        assert!(info.pid.is_some() && info.started.is_some(), "{info:?}");
    }

    client.signal("b", "HUP").await.unwrap();
    for _ in 0..100 {
        if client.tail_stderr("b", 100).await.unwrap() == "heard\n" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.tail_stderr("b", 100).await.unwrap(), "heard\n");
    assert_eq!(client.tail_stderr("b", 3).await.unwrap(), "rd\n");

    let before = client.process("a").await.unwrap().pid;
    client.restart("a", LIMITS).await.unwrap();
    let after = client.process("a").await.unwrap();
    assert_eq!(after.state, State::Running);
    assert_ne!(after.pid, before);

    client.stop("a", Some(LIMITS.stop)).await.unwrap();
    let stopped = client.process("a").await.unwrap();
    assert_eq!((stopped.state, stopped.pid), (State::Stopped, None));
    client.stop("a", Some(LIMITS.stop)).await.unwrap();
    let deaf = client.signal("a", "HUP").await.unwrap_err();
    assert_eq!(deaf.fault(), Some(Fault::NotRunning), "{deaf}");
    let unknown = client.process("nobody").await.unwrap_err();
    assert_eq!(unknown.fault(), Some(Fault::BadName), "{unknown}");
    let known = client.add_group("a").await.unwrap_err();
    assert_eq!(known.fault(), Some(Fault::AlreadyAdded), "{known}");
    let alive = client.remove_group("b").await.unwrap_err();
    assert_eq!(alive.fault(), Some(Fault::StillRunning), "{alive}");
}

#[tokio::test]
async fn a_bad_file_is_refused_in_supervisords_words_and_the_old_one_stays() {
    let hand = Hand::new(&[("a", SLEEP)]);
    let running = hand.start().await;
    fs::write(hand.path("conf"), "[program:a]\nnonsense").unwrap();
    let error = running.client.reload_config().await.unwrap_err();
    assert_eq!(error.fault(), Some(Fault::CantReread), "{error}");
    assert!(error.to_string().contains("nonsense"), "{error}");
    running.client.start("a", Some(LIMITS.start)).await.unwrap();
}

#[tokio::test]
async fn converge_does_what_differs_and_nothing_else() {
    let hand = Hand::new(&[
        ("own", SLEEP),
        ("kept", SLEEP),
        ("changed", SLEEP),
        ("gone", SLEEP),
    ]);
    let running = hand.start().await;
    let client = &running.client;
    for name in ["own", "kept", "changed"] {
        client.start(name, Some(LIMITS.start)).await.unwrap();
    }
    let none = BTreeSet::new();
    let nothing = client.converge("own", &none, LIMITS).await.unwrap();
    assert_eq!(nothing, Converged::default());

    let pids = async || {
        let all = client.all().await.unwrap();
        all.into_iter()
            .map(|p| (p.name, p.pid))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = pids().await;
    hand.write(&[
        ("own", SLEEP_LONGER),
        ("kept", SLEEP),
        ("changed", SLEEP_LONGER),
        ("new", SLEEP),
    ]);
    let done = client.converge("own", &none, LIMITS).await.unwrap();
    let expected = Converged {
        added: vec!["new".to_owned()],
        changed: vec!["changed".to_owned()],
        removed: vec!["gone".to_owned()],
        left_stopped: Vec::new(),
        left_own: true,
    };
    assert_eq!(done, expected);
    let after = pids().await;
    assert_eq!(after["own"], before["own"]);
    assert_eq!(after["kept"], before["kept"]);
    assert_ne!(after["changed"], before["changed"]);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        ["changed", "kept", "new", "own"]
    );
    assert!(after.values().all(Option::is_some), "{after:?}");

    // Again: only the daemon's own change is left to tell.
    let again = client.converge("own", &none, LIMITS).await.unwrap();
    assert_eq!(
        again,
        Converged {
            left_own: true,
            ..Converged::default()
        }
    );
}

#[tokio::test]
async fn what_an_operator_stopped_stays_stopped_unless_we_stopped_it() {
    let hand = Hand::new(&[("a", SLEEP)]);
    let running = hand.start().await;
    let client = &running.client;
    client.start("a", Some(LIMITS.start)).await.unwrap();
    client.stop("a", Some(LIMITS.stop)).await.unwrap();
    hand.write(&[("a", SLEEP_LONGER)]);

    let done = client.converge("own", &BTreeSet::new(), LIMITS).await.unwrap();
    assert_eq!(done.left_stopped, ["a"]);
    // supervisord looks at its programs once a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(client.process("a").await.unwrap().state, State::Stopped);

    let ours = BTreeSet::from(["a".to_owned()]);
    let done = client.converge("own", &ours, LIMITS).await.unwrap();
    assert_eq!(done.changed, ["a"]);
    assert_eq!(client.process("a").await.unwrap().state, State::Running);
}

#[tokio::test]
async fn a_program_that_does_not_stay_up_is_reported_with_its_last_words() {
    let hand = Hand::new(&[("a", SLEEP)]);
    let running = hand.start().await;
    hand.write(&[("a", SLEEP), ("b", "echo port taken by 12 >&2; exit 3")]);
    let error = running
        .client
        .converge("own", &BTreeSet::new(), LIMITS)
        .await
        .unwrap_err();
    let SupervisorError::Failed {
        name,
        state,
        why,
        log,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((name.as_str(), *state), ("b", State::Fatal));
    assert!(why.contains("Exited too quickly"), "{why}");
    assert!(
        log.lines().all(|line| line == "port taken by 12") && !log.is_empty(),
        "{log}"
    );

    // A program that is not there is told apart.
    let text = fs::read_to_string(hand.path("conf")).unwrap();
    fs::write(
        hand.path("conf"),
        text.replace("/bin/sh -c 'echo", "/nowhere/sh -c 'echo"),
    )
    .unwrap();
    let error = running
        .client
        .converge("own", &BTreeSet::from(["b".to_owned()]), LIMITS)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/sh"), "{error}");
}

#[tokio::test]
async fn nobody_silence_and_noise_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let away = Supervisor::new(&socket).alive().await.unwrap_err();
    assert!(matches!(away, SupervisorError::Away { .. }), "{away}");
    assert!(away.to_string().contains("dstack-vpc up"), "{away}");

    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let client = Supervisor::new(&socket).with_call_timeout(Duration::from_millis(100));
    let slow = client.alive().await.unwrap_err();
    assert!(matches!(slow, SupervisorError::Slow { .. }), "{slow}");
    drop(listener);

    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        fs::remove_file(&socket).unwrap();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let answering = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let client = Supervisor::new(&socket);
        let (error, ()) = tokio::join!(client.alive(), answering);
        let error = error.unwrap_err();
        let told = matches!(
            error,
            SupervisorError::Garbled { .. } | SupervisorError::Away { .. }
        );
        assert!(told, "{answer:?}: {error}");
        assert!(error.to_string().len() < 300, "{error}");
    }
}

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
