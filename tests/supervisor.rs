//! The client against a real supervisord.

mod rendered;
#[path = "rendered/supervisord.rs"]
mod supervisord;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use dstack_vpc::supervisor::{Converged, Fault, State, Supervisor, SupervisorError};
use supervisord::{LIMITS, Running};

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
    assert_eq!(name, "b");
    // It is given up at the second try, which on a busy machine may come after our patience ended.
    assert!(matches!(state, State::Fatal | State::Backoff), "{state:?}");
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
