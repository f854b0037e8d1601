//! A machine and the processes on it that come and go, as `up` and the daemon use apply; and what has to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dstack_vpc::apply::{self, Applied, ApplyError, DiskError, Left, Order, generation};
use dstack_vpc::desired::{Desired, Program};
use dstack_vpc::plan::{Listeners, Present, ServiceState, plan};
use dstack_vpc::reconcile::status::Status;

use super::edits::{Desires, Edit, Wish};
use super::machine::{Kind, Model};
use super::world::sections;

/// A machine, what it is to be, and what was seen of it.
#[derive(Clone)]
pub struct Story<'a> {
    pub model: Model,
    pub desires: &'a Desires<'a>,
    /// The generation that must not go: somebody may want to go back to it.
    pub needed: Option<u32>,
    /// The one that is held now.
    pub again: Option<u32>,
    /// Generations that served, proven.
    pub proven: BTreeSet<u32>,
    /// What serves, as long as nothing goes wrong.
    pub live: Option<Wish<'a>>,
    /// What the daemon told last.
    pub status: Status,
}

/// How a reconcile failed.
#[derive(Debug)]
pub enum Failed {
    Look(DiskError),
    Recover(#[allow(dead_code)] DiskError),
    Apply(ApplyError),
}

impl<'a> Story<'a> {
    /// An empty machine.
    pub fn new(desires: &'a Desires<'a>) -> Self {
        Self {
            model: Model::new(desires.state()),
            desires,
            needed: None,
            again: None,
            proven: BTreeSet::new(),
            live: None,
            status: Status::default(),
        }
    }

    /// A machine with what an edit finds.
    pub async fn before(edit: &Edit, desires: &'a Desires<'a>) -> Self {
        let mut story = Self::new(desires);
        story.needed = edit.again;
        for (at, wish) in edit.before.iter().enumerate() {
            match at {
                0 => story.first_start(*wish).await.expect("a first start"),
                _ => story.reconcile(*wish).await.expect("an edit"),
            };
            story.is_right(*wish).await;
        }
        story.again = edit.again;
        story
    }

    /// The whole edit.
    pub async fn run(&mut self, edit: &Edit) -> Result<Applied, Failed> {
        match edit.before {
            [] => self.first_start(edit.wish).await,
            _ => self.reconcile(edit.wish).await,
        }
    }

    /// `up`, then supervisord, then the daemon.
    pub async fn first_start(&mut self, wish: Wish<'a>) -> Result<Applied, Failed> {
        apply::recover(&self.model, self.desires.state()).map_err(Failed::Recover)?;
        self.try_apply(wish, false).await?;
        if !self.model.is_dead() {
            self.model.boot();
        }
        self.daemon(wish).await
    }

    /// Whatever a container or supervisord starts where a process is gone.
    pub async fn start(&mut self, wish: Wish<'a>) -> Result<Applied, Failed> {
        match self.model.world().supervisord {
            None => self.first_start(wish).await,
            Some(_) => self.daemon(wish).await,
        }
    }

    /// The daemon starts.
    pub async fn daemon(&mut self, wish: Wish<'a>) -> Result<Applied, Failed> {
        self.status = Status::default();
        apply::recover(&self.model, self.desires.state()).map_err(Failed::Recover)?;
        self.reconcile(wish).await
    }

    /// The daemon, which is there already, looks again.
    pub async fn reconcile(&mut self, wish: Wish<'a>) -> Result<Applied, Failed> {
        self.try_apply(wish, true).await
    }

    async fn try_apply(&mut self, wish: Wish<'a>, daemon: bool) -> Result<Applied, Failed> {
        let (model, state, desired) = (&self.model, self.desires.state(), self.desires.of(wish));
        let mut present = self.present().await.map_err(Failed::Look)?;
        if !daemon {
            present.listeners = Listeners::NotOurs;
        }
        let plan = plan(desired, &present);
        let order = self.order();
        let applied = apply::apply(model, state, desired, &present, &plan, &order).await;
        if let Ok(applied) = &applied {
            apply::prune(model, state, order.keep, &order.needed, applied);
        }
        self.note(&present, &applied);
        applied.map_err(Failed::Apply)
    }

    /// What is there, as the daemon sees it.
    pub async fn present(&self) -> Result<Present, DiskError> {
        let mut present = apply::look(&self.model, self.desires.state()).await?;
        present.listeners = match self.model.world().listeners {
            Some(settings) => Listeners::Open(Box::new(settings)),
            None => Listeners::Closed,
        };
        Ok(present)
    }

    /// Only two generations are kept, so that the oldest go all the time.
    pub fn order(&self) -> Order {
        Order {
            cause: "test".into(),
            keep: 2,
            needed: self.needed.into_iter().collect(),
            again: self.again,
            probe_timeout: Duration::from_secs(1),
        }
    }

    fn note(&mut self, before: &Present, result: &Result<Applied, ApplyError>) {
        match result {
            Ok(applied) if applied.proven => drop(self.proven.insert(applied.generation)),
            Ok(_) => {}
            // It had ended, but for what makes that durable.
            Err(_) if self.model.is_dead() && !self.is_owed() => self.proven.extend(self.current()),
            Err(error) => {
                assert_ne!(error.failure.to_string(), "");
                match &error.left {
                    Left::Untouched => {
                        assert_eq!(
                            self.current(),
                            before.generation,
                            "{error:?}: untouched means untouched"
                        );
                    }
                    Left::RolledBackTo(number) => assert_eq!(self.current(), Some(*number)),
                    _ => {}
                }
            }
        }
    }

    /// Reads what is there without counting as a step that may fail.
    pub fn disk(&self) -> Model {
        let disk = self.model.clone();
        disk.start_anew();
        disk.plan(None);
        disk
    }

    pub fn current(&self) -> Option<u32> {
        generation::current(&self.disk(), self.desires.state()).expect("a disk that works")
    }

    /// The live generation is complete, and its files are those of one of `wishes`; without one, it is the first start.
    pub fn is_whole(&self, wishes: &[Wish<'_>], may_be_none: bool) {
        let (disk, state) = (self.disk(), self.desires.state());
        let Some(number) = self.current() else {
            assert!(may_be_none, "no generation is live");
            return;
        };
        let files = generation::files(&disk, state, number);
        let manifest = generation::manifest(&disk, state, number).expect("a manifest");
        assert_eq!(manifest.drifted(&files), [""; 0], "generation {number}");
        let is = |wish: &Wish<'_>| bytes(self.desires.of(*wish)) == files;
        assert!(wishes.iter().any(is), "generation {number} is another's");
    }

    /// All that runs uses the files of the live generation.
    pub fn is_served(&self) {
        let unserved = self.unserved();
        assert!(unserved.is_empty(), "{unserved:#?}");
    }

    /// What runs otherwise than the live generation says.
    pub fn unserved(&self) -> Vec<String> {
        let (disk, state, world) = (self.disk(), self.desires.state(), self.model.world());
        let Some(number) = self.current() else {
            return vec!["no generation is live".to_owned()];
        };
        let files = generation::files(&disk, state, number);
        let mut found = Vec::new();
        for (program, read, path) in [
            ("nginx", &world.nginx, "nginx/nginx.conf"),
            ("headscale", &world.headscale, "headscale/headscale.yaml"),
        ] {
            let text =
                |bytes: Option<&Vec<u8>>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            let (read, live) = (text(read.as_ref()), text(files.get(path)));
            if read != live {
                found.push(format!("{program} uses {read:?} and not {live:?}"));
            }
        }
        let Some(known) = world.supervisord else {
            found.push("supervisord does not run".to_owned());
            return found;
        };
        let down = known.iter().filter(|(_, (_, state))| *state != ServiceState::Up);
        found.extend(down.map(|(name, _)| format!("{name} does not run")));
        let known: BTreeMap<_, _> = known.into_iter().map(|(name, (text, _))| (name, text)).collect();
        let wanted = sections(&files["supervisor/supervisord.conf"]);
        if known != wanted || !known.contains_key(Program::Daemon.name()) {
            found.push(format!("supervisord runs {known:#?} and not {wanted:#?}"));
        }
        found
    }

    pub fn is_owed(&self) -> bool {
        let journal = self.desires.state().run().join("journal.json");
        self.model.paths().contains(&journal)
    }

    /// Something is staged or half removed.
    pub fn is_staged(&self) -> bool {
        let temporary = |path: &Path| path.extension().is_some_and(|it| it == "tmp");
        self.model.paths().iter().any(|path| temporary(path))
    }

    /// Done, proven, nothing owed, nothing left over, and nothing more to do.
    pub async fn is_right(&mut self, wish: Wish<'a>) {
        let state = self.desires.state();
        self.is_whole(&[wish], false);
        self.is_served();
        assert!(!self.is_staged(), "{:?}", self.model.paths());
        let desired = self.desires.of(wish);
        assert_eq!(self.model.world().listeners.as_ref(), Some(&desired.listeners));
        assert!(!self.is_owed());
        let root = generation::dir(state, self.current().expect("live"));
        for (path, file) in &desired.files {
            assert_eq!(self.model.mode(&root.join(path)), Some(file.mode), "{path}");
        }
        let all = generation::all(&self.disk(), state).expect("a disk that works");
        let never: Vec<_> = all.iter().filter(|n| !self.proven.contains(n)).collect();
        assert!(never.is_empty(), "{never:?} never served");
        for number in &all {
            let files = generation::files(&self.disk(), state, *number);
            let manifest = generation::manifest(&self.disk(), state, *number).expect("a manifest");
            assert_eq!(manifest.drifted(&files), [""; 0], "generation {number}");
        }
        assert!(self.needed.is_none_or(|needed| all.contains(&needed)), "{all:?}");

        self.model.plan(None);
        let applied = self.reconcile(wish).await.expect("a no-op");
        assert!(!applied.changed && applied.proven, "{applied:?}");
        let writes = self.model.steps().into_iter();
        let writes: Vec<_> = writes.filter(|(kind, _)| *kind == Kind::Write).collect();
        assert!(writes.is_empty(), "{writes:?}");
        self.live = Some(wish);
        self.tells(wish, Ok(applied)).await;
    }
}

/// The files of a desired state.
pub fn bytes(desired: &Desired) -> BTreeMap<String, Vec<u8>> {
    let files = desired.files.iter();
    files
        .map(|(path, file)| (path.clone(), file.bytes.clone()))
        .collect()
}
