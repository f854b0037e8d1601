//! Every step of an apply fails once, and is the last one once: what is left is always one whole generation.
//!
//! The disk is real; supervisord and nginx are a model of what matters here: nginx serves what it read last.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dstack_vpc::apply::{self, Left, Machine, Order, Real, generation};
use dstack_vpc::desired::ListenerSettings;
use dstack_vpc::desired::{Desired, Launch, Probe, Program, Reader, Templates, desired};
use dstack_vpc::facts::assume;
use dstack_vpc::paths::StateDir;
use dstack_vpc::plan::{ActionKind, Listeners, Service, ServiceState, plan};
use dstack_vpc::spec::{ConfigText, load};

/// How a step goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// It fails, and everything after it works.
    Error,
    /// It and everything after it never happens: the process is dead.
    Kill,
}

struct Faulty {
    real: Real,
    state: StateDir,
    steps: AtomicUsize,
    fault: Option<(usize, Fault)>,
    /// What nginx serves: the tag it read last. It lives on when our process dies.
    served: Mutex<Option<String>>,
    /// The programs supervisord knows, which outlive our process too.
    known: Mutex<Vec<String>>,
    hit: AtomicBool,
}

impl Faulty {
    fn new(state: &StateDir) -> Self {
        Self {
            real: Real::new(state, None),
            state: state.clone(),
            steps: AtomicUsize::new(0),
            fault: None,
            served: Mutex::new(None),
            known: Mutex::new(vec!["dstack-vpc".into()]),
            hit: AtomicBool::new(false),
        }
    }

    fn step(&self) -> io::Result<()> {
        let now = self.steps.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some((at, Fault::Error)) if now == at => Err(io::Error::other("injected")),
            Some((at, Fault::Kill)) if now >= at => Err(io::Error::other("dead")),
            _ => return Ok(()),
        }
        .inspect_err(|_| self.hit.store(true, Ordering::Relaxed))
    }

    fn read_conf(&self) {
        let conf = std::fs::read_to_string(self.state.current().join("nginx/nginx.conf")).unwrap();
        let tag = conf
            .split("return 200 \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap()
            .to_owned();
        *self.served.lock().unwrap() = Some(tag);
    }
}

impl Machine for Faulty {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.real.read(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.real.list(dir)
    }
    fn read_link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.real.read_link(path)
    }
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step()?;
        self.real.make_dir(path, mode)
    }
    fn write_new(&self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.step() {
            // A write that fails may have written a part.
            let _ = self.real.write_new(path, mode, &bytes[..bytes.len() / 2]);
            return Err(error);
        }
        self.real.write_new(path, mode, bytes)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        self.real.sync_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        self.real.rename(from, to)
    }
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.step()?;
        self.real.symlink(target, link)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.real.remove(path)
    }
    fn why_not(&self, _: SocketAddr, _: Option<i32>) -> Option<String> {
        None
    }
    fn end_orphans(&self) -> bool {
        false
    }
    async fn check(&self, _: Reader, _: &Path) -> Result<(), String> {
        self.step().map_err(|error| error.to_string())
    }
    async fn services(&self) -> Option<BTreeMap<String, Service>> {
        let known = self.known.lock().unwrap();
        let up = || Service {
            state: ServiceState::Up,
            pid: Some(4),
            detail: String::new(),
        };
        Some(known.iter().map(|name| (name.clone(), up())).collect())
    }
    async fn act(&self, action: ActionKind, _: &ListenerSettings) -> Result<(), String> {
        self.step().map_err(|error| error.to_string())?;
        match action {
            ActionKind::ReloadNginx | ActionKind::Start(Program::Nginx) => self.read_conf(),
            ActionKind::UpdateSupervisor { .. } => {
                let conf = std::fs::read_to_string(self.state.current().join("supervisor/supervisord.conf"))
                    .unwrap();
                let names = conf
                    .lines()
                    .filter_map(|line| line.strip_prefix("[program:")?.strip_suffix(']'));
                *self.known.lock().unwrap() = names.map(str::to_owned).collect();
                if self.served.lock().unwrap().is_none() {
                    self.read_conf();
                }
            }
            _ => {}
        }
        Ok(())
    }
    fn workers(&self, _: i32) -> Vec<i32> {
        Vec::new()
    }
    async fn prove(&self, _: &[Probe], tag: &str, _: &[i32], _: Duration) -> Result<(), String> {
        self.step().map_err(|error| error.to_string())?;
        match self.served.lock().unwrap().as_deref() {
            Some(served) if served == tag => Ok(()),
            other => Err(format!("serves {other:?}, not {tag}")),
        }
    }
    async fn settle(&self) {}
}

fn wish(text: &str, state: &StateDir) -> Desired {
    let spec = load(Some(&ConfigText::new("vpc.toml", text)), &BTreeMap::new())
        .unwrap()
        .spec;
    let app = "aa00000000000000000000000000000000000001".to_owned();
    let pairs = [
        ("app_id".to_owned(), app),
        ("gateway_domain".to_owned(), "apps.example.com:443".to_owned()),
    ];
    let facts = assume(&pairs, &spec, state).unwrap();
    let launch = Launch {
        exe: "/usr/bin/dstack-vpc".into(),
        config: None,
    };
    desired(&spec, &facts, state, &launch, &Templates::builtin()).unwrap()
}

async fn once(machine: &Faulty, state: &StateDir, desired: &Desired) -> Result<bool, String> {
    apply::recover(machine, state).map_err(|error| error.to_string())?;
    let mut present = apply::look(machine, state)
        .await
        .map_err(|error| error.to_string())?;
    present.listeners = Listeners::Open(Box::new(desired.listeners.clone()));
    let plan = plan(desired, &present);
    let order = Order {
        cause: "test".into(),
        keep: 3,
        needed: Vec::new(),
        again: None,
        probe_timeout: Duration::from_secs(1),
    };
    match apply::apply(machine, state, desired, &present, &plan, &order).await {
        Ok(applied) => Ok(applied.changed),
        Err(error) => {
            if error.left == Left::Untouched && machine.fault.is_some_and(|(_, fault)| fault == Fault::Error)
            {
                let now = generation::current(machine, state).unwrap();
                assert_eq!(now, present.generation, "untouched means untouched");
            }
            Err(error.failure.to_string())
        }
    }
}

/// The link leads to a generation whose files are exactly those that were written.
fn whole(machine: &Faulty, state: &StateDir) -> bool {
    let Some(number) = generation::current(machine, state).unwrap() else {
        return !state.current().exists();
    };
    let manifest = generation::manifest(machine, state, number).expect("a live generation has a manifest");
    manifest
        .drifted(&generation::files(machine, state, number))
        .is_empty()
}

fn nothing_left_over(state: &StateDir) {
    nothing_staged(state);
    assert!(!state.run().join("journal.json").exists());
}

/// Also when nothing is switched again, as when the edit was taken back meanwhile.
fn nothing_staged(state: &StateDir) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let all = [state.root().to_owned(), state.generations(), state.run()]
        .map(|dir| names(&dir))
        .concat();
    let left: Vec<_> = all.iter().filter(|name| name.contains("tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

const EDITS: &[(&str, &str)] = &[
    ("first start", ""),
    (
        "a backend",
        "[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n",
    ),
    ("a port", "[mesh]\nhttp_listen = \"0.0.0.0:81\"\n"),
    (
        "an allow-list",
        "[mesh]\nhttp_listen = \"0.0.0.0:81\"\n[log]\nlevel = \"debug\"\n",
    ),
    ("another role", "role = \"server\"\nallowed_apps = \"any\"\n"),
    ("and back", ""),
];

#[tokio::test]
async fn whatever_step_fails_or_is_the_last_one_whole_generation_serves() {
    let mut points = 0;
    for fault in [Fault::Error, Fault::Kill] {
        for edit in 0..EDITS.len() {
            for at in 0.. {
                let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() {
                    "/dev/shm"
                } else {
                    "/tmp"
                })
                .unwrap();
                let state = StateDir::new(dir.path());
                let mut machine = Faulty::new(&state);
                if edit > 0 {
                    once(&machine, &state, &wish(EDITS[edit - 1].1, &state))
                        .await
                        .unwrap();
                }
                let name = EDITS[edit].0;
                let desired = wish(EDITS[edit].1, &state);
                machine.steps.store(0, Ordering::Relaxed);
                machine.fault = Some((at, fault));
                let outcome = once(&machine, &state, &desired).await;
                assert!(
                    whole(&machine, &state),
                    "{name}, step {at}, {fault:?}: {outcome:?}"
                );
                if !machine.hit.load(Ordering::Relaxed) {
                    assert!(outcome.is_ok(), "{name}: {outcome:?}");
                    break;
                }
                points += 1;
                if fault == Fault::Error && outcome.is_err() {
                    let left = std::fs::read_dir(state.generations())
                        .into_iter()
                        .flatten()
                        .flatten();
                    let staged = left.filter(|entry| entry.path().extension().is_some()).count();
                    assert_eq!(staged, 0, "{name}, step {at}: a full disk needs the room");
                }

                // A fresh start with the same wish: done, proven, nothing owed, nothing lying about.
                machine.fault = None;
                apply::recover(&machine, &state).unwrap();
                nothing_staged(&state);
                let outcome = once(&machine, &state, &desired).await;
                assert!(outcome.is_ok(), "{name}, after step {at}, {fault:?}: {outcome:?}");
                assert!(whole(&machine, &state), "{name}, after step {at}");
                assert_eq!(
                    machine.served.lock().unwrap().as_ref(),
                    Some(&desired.tag),
                    "{name}, after {at}, {fault:?}"
                );
                nothing_left_over(&state);
                assert_eq!(
                    once(&machine, &state, &desired).await,
                    Ok(false),
                    "{name}, after {at}: no second change"
                );
            }
        }
    }
    println!("{points} points tried");
    assert!(points > 150, "{points}");
}
