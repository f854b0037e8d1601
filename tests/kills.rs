//! Processes killed at random moments while the configuration changes and requests flow: nobody is answered by half a
//! configuration, and after the last kill the machine is the way the file says, with nothing left over.
//!
//! `KILLS` says how many (5), `SEED` which moments; `make kills` is the long run.

#[allow(dead_code, unreachable_pub)]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dstack_vpc::agent::dev::Issued;
use dstack_vpc::apply::{Real, generation};
use dstack_vpc::reconcile::status::ConditionKind::{Configured, Ready};
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use common::agent::Agent;
use common::backend::Backend;
use common::http::{self, Reply, With, get};
use common::machine::{Machine, Plan, has_nginx, holds, replace};
use common::ports::Port;
use common::process;
use common::tls::Caller;
use common::{CLIENT_APP, OTHER_APP, SERVER_APP, poll, run};

/// How long the machine may take to be well after the last kill: supervisord waits longer after each early end.
const WELL: Duration = Duration::from_secs(90);
/// An exchange that is answered at all is answered within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two configurations that have nothing in common but their Hosts: backends `a<n>` and `b<n>`, where all may call that
/// are allowed in `n`.
const ALLOWED: [[&str; 2]; 2] = [[SERVER_APP, CLIENT_APP], [SERVER_APP, OTHER_APP]];

#[test]
fn whoever_is_killed_nobody_is_answered_by_half_a_configuration() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number("KILLS").unwrap_or(5);
    let seed = number("SEED").unwrap_or_else(|| std::process::id() as usize);
    println!("KILLS={kills} SEED={seed}");
    run(Run::start(seed as u64).then_kill(kills));
}

struct Run {
    random: fastrand::Rng,
    seed: u64,
}

impl Run {
    fn start(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, seed }
    }

    async fn then_kill(mut self, kills: usize) {
        let agent = Agent::start().await;
        let backends = [
            Backend::start("a0").await,
            Backend::start("b0").await,
            Backend::start("a1").await,
            Backend::start("b1").await,
        ];
        let nowhere = Port::reserve();
        let mut plan = Plan::new(&agent.socket(SERVER_APP), nowhere.addr(), &[]);
        let base = plan.toml.clone();
        let toml = |variant: usize, edit: usize| {
            let mut text = format!("{base}\n# edit {edit}\n");
            for (name, backend) in ["a", "b"].iter().zip(&backends[2 * variant..]) {
                let (upstream, allowed) = (backend.addr(), ALLOWED[variant]);
                let _ = writeln!(
                    text,
                    "[[backends]]\nname = \"{name}{variant}\"\nserver_name = \"{name}.local\"\n\
                     upstream = \"{upstream}\"\nallowed_apps = {allowed:?}"
                );
            }
            text
        };
        plan.toml = toml(0, 0);
        // Of its own, so that a build meanwhile is no disturbance.
        plan.program = common::copy_binary(plan.dir.path());
        let scratch = plan.dir.path().join("tmp");
        std::fs::create_dir(&scratch).unwrap();
        let scratch_name = scratch.to_string_lossy().into_owned();
        plan.env.push(("TMPDIR".to_owned(), scratch_name));
        let mut machine = plan.start().await;
        let traffic = Traffic::start(&machine, &agent);

        let begun = Instant::now();
        let mut killed: BTreeMap<Target, usize> = BTreeMap::new();
        let mut seen: BTreeSet<(i32, u64)> = BTreeSet::new();
        let (mut edits, mut starts) = (0, 0);
        let mut sum = 0;
        while sum < kills {
            edits += 1;
            match self.random.u8(..) % 5 {
                0 => std::fs::write(&machine.config, "[[backends\n").unwrap(),
                _ => replace(&machine.config, toml(edits % 2, edits).as_bytes()),
            }
            // An edit is live after a third of a second or so.
            sleep(Duration::from_millis(self.random.u64(0..600))).await;
            let processes = machine.processes();
            seen.extend(
                processes
                    .iter()
                    .filter_map(|p| Some((p.pid, process::started(p.pid)?))),
            );
            let all: Vec<_> = processes
                .iter()
                .filter_map(|p| Some((Target::of(p, machine.pid())?, p.pid)))
                .collect();
            // Whoever there may be: of `Up` only a moment, of nginx only where it is the front.
            let may_be = |kind: &Target| has_nginx() || ![Target::Master, Target::Worker].contains(kind);
            let often: Vec<_> = Target::OFTEN.iter().copied().filter(may_be).collect();
            let wanted = self.random.choice(&often).expect("some");
            let pids: Vec<_> = all.iter().filter(|(kind, _)| kind == wanted).collect();
            if let Some((_, pid)) = self.random.choice(&pids)
                && kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()
            {
                *killed.entry(*wanted).or_default() += 1;
                sum += 1;
            }
            // Before or after supervisord has started what ended: it does so once a second.
            sleep(Duration::from_millis(self.random.u64(0..2500))).await;
            if machine.has_ended() {
                machine.spawn_again();
                starts += 1;
            }
            if edits % 50 == 0 {
                println!("{sum} kills in {:?}: {killed:?}", begun.elapsed());
            }
        }
        let took = begun.elapsed();

        // What is wished in the end, and one last kill in the middle of it.
        let last = 1 - edits % 2;
        replace(&machine.config, toml(last, edits + 1).as_bytes());
        sleep(Duration::from_millis(self.random.u64(0..400))).await;
        if let Some(daemon) = machine
            .processes()
            .iter()
            .find(|p| Target::of(p, 0) == Some(Target::Daemon))
        {
            let _ = kill(Pid::from_raw(daemon.pid), Signal::SIGKILL);
        }
        let clients: Vec<Issued> = [CLIENT_APP, OTHER_APP].map(|app| agent.issue(app)).into();
        let well = poll(WELL, async || {
            if machine.has_ended() {
                machine.spawn_again();
            }
            let status = machine.status().await?;
            let settled = holds(&status, Ready) && holds(&status, Configured) && !status.owed;
            (settled && serves(&machine, &clients[last], last).await).then_some(())
        });
        assert!(well.await.is_some(), "seed {}\n{}", self.seed, machine.logs());
        let tally = traffic.stop().await;
        println!(
            "{sum} kills in {took:?} ({killed:?}), {edits} edits, {starts} starts of the whole; {}",
            tally.words()
        );
        assert!(tally.wrong.is_empty(), "seed {}: {:#?}", self.seed, tally.wrong);
        assert!(tally.answered > kills, "there was traffic");
        nothing_left_over(&machine, &seen, &scratch).await;
    }
}

/// Whether both Hosts are answered by the variant's own backends.
async fn serves(machine: &Machine, identity: &Issued, variant: usize) -> bool {
    let caller = Caller::with(identity.clone());
    let pair = ask_both(&caller, machine.ports.https.addr()).await;
    let wanted = ["a", "b"].map(|name| Some(format!("{name}{variant}")));
    pair.is_ok_and(|pair| pair.map(|reply| backend(&reply)) == wanted)
}

async fn nothing_left_over(machine: &Machine, seen: &BTreeSet<(i32, u64)>, scratch: &std::path::Path) {
    // Old workers end when their last request has.
    let gone = poll(WELL, async || {
        let now = machine.processes();
        let ours = |pid: i32| now.iter().any(|p| p.pid == pid);
        let orphan = seen
            .iter()
            .any(|(pid, at)| process::started(*pid) == Some(*at) && process::is_alive(*pid) && !ours(*pid));
        let count = |kind| now.iter().filter(|p| Target::of(p, 0) == Some(kind)).count();
        let one_each = count(Target::Daemon) == 1 && count(Target::Master) == usize::from(has_nginx());
        (!orphan && one_each).then_some(())
    });
    assert!(
        gone.await.is_some(),
        "{:#?}\n{}",
        machine.processes(),
        machine.logs()
    );

    let state = &machine.state;
    for dir in [state.root().to_owned(), state.generations(), state.run()] {
        // The oldest generation goes after the newest was told of.
        let left = || names(&dir).into_iter().filter(|name| name.contains("tmp"));
        let gone = poll(WELL, async || left().next().is_none().then_some(()));
        assert!(
            gone.await.is_some(),
            "{}: {:?}",
            dir.display(),
            left().collect::<Vec<_>>()
        );
    }
    assert!(!state.run().join("journal.json").exists());
    assert_eq!(names(scratch), [""; 0], "temporary files");
    let disk = Real::new(state, None);
    for number in generation::all(&disk, state).unwrap() {
        let manifest = generation::manifest(&disk, state, number).expect("a complete generation");
        let files = generation::files(&disk, state, number);
        assert_eq!(manifest.drifted(&files), [""; 0], "generation {number}");
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Whom a kill may hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Up,
    Supervisord,
    Daemon,
    Master,
    Worker,
}

impl Target {
    /// Supervisord takes all with it, and the whole starts anew: less often.
    const OFTEN: &[Self] = &[
        Self::Up,
        Self::Supervisord,
        Self::Daemon,
        Self::Daemon,
        Self::Daemon,
        Self::Daemon,
        Self::Master,
        Self::Master,
        Self::Worker,
        Self::Worker,
        Self::Worker,
    ];

    fn of(process: &process::Process, root: i32) -> Option<Self> {
        let command = process.command.as_str();
        match process.pid {
            pid if pid == root && command.ends_with(" up") => Some(Self::Up),
            pid if pid == root => Some(Self::Supervisord),
            _ if command.ends_with(" run") => Some(Self::Daemon),
            _ if command.starts_with("nginx: master") => Some(Self::Master),
            _ if command == "nginx: worker process" => Some(Self::Worker),
            _ => None,
        }
    }
}

/// Callers of three apps; each asks for both Hosts on one connection, which one worker of nginx serves.
struct Traffic {
    stop: CancellationToken,
    callers: JoinSet<()>,
    tally: Arc<Tallies>,
}

#[derive(Default)]
struct Tallies {
    answered: AtomicUsize,
    refused: AtomicUsize,
    unanswered: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

struct Tally {
    answered: usize,
    refused: usize,
    unanswered: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn words(&self) -> String {
        format!(
            "{} requests answered, {} refused, {} not answered, {} wrong",
            self.answered,
            self.refused,
            self.unanswered,
            self.wrong.len()
        )
    }
}

impl Traffic {
    fn start(machine: &Machine, agent: &Agent) -> Self {
        let (stop, tally) = (CancellationToken::new(), Arc::new(Tallies::default()));
        let mut callers = JoinSet::new();
        for app in [SERVER_APP, CLIENT_APP, OTHER_APP] {
            let caller = Caller::with(agent.issue(app));
            let (addr, stop, tally) = (machine.ports.https.addr(), stop.clone(), tally.clone());
            callers.spawn(async move {
                while !stop.is_cancelled() {
                    let begun = Instant::now();
                    match ask_both(&caller, addr).await {
                        Ok(pair) => tally.judge(app, &pair),
                        Err(_) => drop(tally.unanswered.fetch_add(2, Ordering::Relaxed)),
                    }
                    // As much rest as work: two cores serve several tests.
                    sleep(begun.elapsed().max(Duration::from_millis(20))).await;
                }
            });
        }
        Self { stop, callers, tally }
    }

    async fn stop(self) -> Tally {
        self.stop.cancel();
        self.callers.join_all().await;
        let count = |it: &AtomicUsize| it.load(Ordering::Relaxed);
        Tally {
            answered: count(&self.tally.answered),
            refused: count(&self.tally.refused),
            unanswered: count(&self.tally.unanswered),
            wrong: std::mem::take(&mut self.tally.wrong.lock().unwrap()),
        }
    }
}

impl Tallies {
    /// Whoever answers has to be a backend of the Host, of a configuration that allows the caller, and both answers
    /// have to be of one configuration.
    fn judge(&self, app: &str, pair: &[Reply; 2]) {
        let mut variants = Vec::new();
        for (reply, host) in pair.iter().zip(["a", "b"]) {
            let count = match reply.status {
                200 => &self.answered,
                403 => &self.refused,
                _ => &self.unanswered,
            };
            count.fetch_add(1, Ordering::Relaxed);
            let name = backend(reply);
            let variant = [0, 1]
                .into_iter()
                .find(|variant| name == Some(format!("{host}{variant}")));
            let right = match reply.status {
                200 => variant.is_some_and(|variant| ALLOWED[variant].contains(&app)),
                // Every configuration lets this one in.
                403 => app != SERVER_APP,
                // Who would check the caller, or who would answer, is just dead.
                500 | 502 | 504 => true,
                _ => false,
            };
            if !right {
                self.wrong(format!("{app} {host}.local: {} {}", reply.status, reply.text()));
            }
            variants.extend(variant);
        }
        // A connection to nginx is with one worker and its one configuration. The built-in front asks for each request
        // anew, so of that one only what each request found has to fit.
        if let [first, second] = variants[..]
            && first != second
            && has_nginx()
        {
            self.wrong(format!("{app}: a{first} and b{second} on one connection"));
        }
    }

    fn wrong(&self, words: String) {
        let at = jiff::Timestamp::now();
        self.wrong.lock().unwrap().push(format!("{at} {words}"));
    }
}

fn backend(reply: &Reply) -> Option<String> {
    reply.json()["backend"].as_str().map(str::to_owned)
}

async fn ask_both(caller: &Caller, addr: std::net::SocketAddr) -> Result<[Reply; 2], http::Error> {
    timeout(PATIENCE, async {
        let stream = caller.connect(addr).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let asking = async {
            let first = ask(&mut sender, "a.local").await?;
            Ok([first, ask(&mut sender, "b.local").await?])
        };
        tokio::pin!(asking);
        tokio::select! {
            answers = &mut asking => answers,
            ended = connection => {
                ended?;
                asking.await
            }
        }
    })
    .await?
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, host: &'static str) -> Result<Reply, http::Error> {
    sender.ready().await?;
    Reply::read(sender.send_request(get("/which").with("host", host)).await?).await
}
