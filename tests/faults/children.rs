//! Checkers that go wrong, as real processes: what they leave, and what is said of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dstack_vpc::apply::{Machine, Real};
use dstack_vpc::desired::Reader;
use dstack_vpc::facts::assume;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::Spec;
use tokio::sync::Mutex;

/// Has a script in the place of nginx look at a file; the pid that it had, and what came of it.
async fn checked_by(script: &str) -> (i32, Result<(), String>) {
    // What is forked while a script is being written keeps it busy until it has become another program.
    static ONE: Mutex<()> = Mutex::const_new(());
    let _one = ONE.lock().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (program, pid_file) = (dir.path().join("nginx"), dir.path().join("pid"));
    let whole = format!(
        "#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\n{script}\n",
        pid_file.display()
    );
    fs::write(&program, whole).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let state = StateDir::new(dir.path().join("state"));
    fs::create_dir_all(state.run()).expect("a folder");
    let mut programs = assume(&[], &Spec::default(), &state).expect("facts").programs;
    programs.nginx.as_mut().expect("nginx").value.path = program;
    let machine = Real::new(&state, None);
    machine.know(&programs);

    let begun = async {
        // A task that is ready holds the clock: the patience of the check begins when the script has.
        while !pid_file.exists() {
            std::thread::sleep(Duration::from_millis(2));
            tokio::task::yield_now().await;
        }
    };
    let (result, ()) = tokio::join!(machine.check(Reader::Nginx, dir.path()), begun);
    let left: Vec<_> = fs::read_dir(state.run()).expect("a folder").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let pid = fs::read_to_string(&pid_file).expect("a pid");
    (pid.trim().parse().expect("a number"), result)
}

/// Or only waits for somebody to hear of it.
fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[tokio::test(start_paused = true)]
async fn a_checker_that_hangs_is_ended_and_leaves_nothing() {
    let (pid, result) = checked_by("exec sleep 1000").await;
    let words = result.expect_err("it hung");
    assert!(words.contains("did not end within"), "{words}");
    let end = Instant::now() + Duration::from_secs(20);
    while !is_gone(pid) {
        assert!(Instant::now() < end, "{pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_checker_that_refuses_or_is_killed_is_told_of() {
    let (_, result) = checked_by("echo that is wrong >&2; exit 1").await;
    assert_eq!(result, Err("that is wrong".to_owned()));
    let (_, result) = checked_by("kill -9 $$").await;
    let words = result.expect_err("it was killed");
    assert!(words.contains("SIGKILL"), "{words}");
    assert_eq!(checked_by("exit 0").await.1, Ok(()));
}
