//! What holds for any machine, any settings and any edits.
//!
//! `PROPTEST_CASES` (`make properties`) tries more than the few of each run.

use std::collections::{BTreeMap, BTreeSet};

use dstack_vpc::apply::generation;
use dstack_vpc::reconcile::before;
use dstack_vpc::spec::{ConfigText, SECTIONS, load};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestRng, TestRunner};
use tokio::runtime::{Builder, Runtime};

use super::edits::{Desires, Wish, make};
use super::machine::{Fault, Kind};
use super::specs::{self, Change, File};
use super::story::Story;
use super::world::World;

/// Settings on a machine: how often its certificate was renewed, whether a template is overridden.
pub type Settings = (File, u32, bool);

fn settings() -> impl Strategy<Value = Settings> {
    around(specs::file())
}

/// Settings, and what they become.
pub fn edit() -> impl Strategy<Value = (Settings, Settings)> {
    (specs::edit(), machine(), machine())
        .prop_map(|((a, b), on, then)| ((a, on.0, on.1), (b, then.0, then.1)))
}

fn around(file: impl Strategy<Value = File>) -> impl Strategy<Value = Settings> {
    (file, machine()).prop_map(|(file, (renewed, overridden))| (file, renewed, overridden))
}

/// Mostly the same.
fn machine() -> impl Strategy<Value = (u32, bool)> {
    (
        prop_oneof![3 => Just(0), 1 => 1..3_u32],
        prop::bool::weighted(0.2),
    )
}

/// For each of these settings what is wished.
pub struct Texts(Vec<(String, u32, bool)>);

impl Texts {
    pub fn of<'s>(all: impl IntoIterator<Item = &'s Settings>) -> Self {
        let texts = all
            .into_iter()
            .map(|(file, renewed, odd)| (file.text(), *renewed, *odd));
        Self(texts.collect())
    }

    pub fn wishes(&self) -> Vec<Wish<'_>> {
        let wishes = self.0.iter().map(|(text, renewed, overridden)| Wish {
            text,
            renewed: *renewed,
            overridden: *overridden,
        });
        wishes.collect()
    }
}

pub fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// A machine on which one wish after the other was brought about.
pub async fn story<'a>(desires: &'a Desires<'a>, wishes: &[Wish<'a>]) -> Story<'a> {
    let mut story = Story::new(desires);
    story.first_start(wishes[0]).await.expect("a first start");
    for wish in &wishes[1..] {
        story.reconcile(*wish).await.expect("an edit");
    }
    story
}

/// The live files, and what runs.
fn everything(story: &Story<'_>) -> (BTreeMap<String, Vec<u8>>, String) {
    let (model, state) = (&story.model, story.desires.state());
    let files = generation::files(model, state, story.current().expect("a live generation"));
    let world = World {
        starts: BTreeMap::new(),
        ..model.world()
    };
    (files, format!("{world:?}"))
}

proptest! {
    #![proptest_config(specs::cases(24))]

    #[test]
    fn the_way_there_and_back_restores_every_byte(earlier in prop::collection::vec(settings(), 0..2), (a, b) in edit()) {
        let texts = Texts::of(earlier.iter().chain([&a, &b]));
        let wishes = texts.wishes();
        let desires = Desires::new(&wishes);
        let [start @ .., there] = &wishes[..] else { unreachable!() };
        let back = start[start.len() - 1];
        runtime().block_on(async {
            let mut story = story(&desires, start).await;
            let before = everything(&story);
            story.reconcile(*there).await.expect("there");
            story.is_right(*there).await;
            story.reconcile(back).await.expect("back");
            story.is_right(back).await;
            assert_eq!(everything(&story), before);
        });
    }

    /// Edits that nobody can read, that their reader refuses, or that come to nothing at any step, count for nothing.
    #[test]
    fn any_edits_end_in_the_last_valid_one(
        first in specs::file(),
        edits in prop::collection::vec((specs::change(), machine(), what_comes_of_it()), 1..6),
    ) {
        let mut now = first.clone();
        let mut saved = vec![(first, 0, false)];
        for (change, (renewed, overridden), _) in &edits {
            now = Change::of(change, &now);
            saved.push((now.clone(), *renewed, *overridden));
        }
        let texts = Texts::of(&saved);
        let wishes = texts.wishes();
        let desires = Desires::new(&wishes);
        runtime().block_on(async {
            let mut last = wishes[0];
            let mut story = story(&desires, &[last]).await;
            for (((file, ..), wish), (.., fate)) in saved.iter().zip(&wishes).skip(1).zip(&edits) {
                let fails_at = match fate {
                    Fate::Unreadable(how) => {
                        let text = ConfigText::new("vpc.toml", file.broken(how));
                        assert!(load(Some(&text), &BTreeMap::new()).is_err(), "{}", text.text);
                        story.is_held(last).await;
                        continue;
                    }
                    Fate::Fails(at, fault) => Some((*at, *fault)),
                    Fate::Works => None,
                };
                story.model.plan(fails_at);
                let worked = story.reconcile(*wish).await.is_ok_and(|applied| applied.proven);
                story.model.plan(None);
                match worked {
                    true => last = *wish,
                    // As the daemon does when the wish fails.
                    false => drop(story.reconcile(last).await.expect("the last good one")),
                }
                if story.is_staged() {
                    // An old generation that could not be removed: only room is at stake, and the next start does it.
                    story.daemon(last).await.expect("a start");
                }
                story.is_right(last).await;
            }
        });
    }

    /// Nor does it matter in which order the file says it, or whether it is the file or what a generation keeps of it.
    #[test]
    fn the_same_wish_is_rendered_to_the_same_bytes((file, renewed, overridden) in settings()) {
        let texts = [file.text(), file.backwards()];
        let wish = |text| Wish { text, renewed, overridden };
        let desires = Desires::new(&[wish(&texts[0])]);
        let made = desires.made(wish(&texts[0]));
        let kept = made.loaded.spec.to_toml();
        for text in [&texts[0], &texts[1], &kept] {
            prop_assert_eq!(&make(wish(text), desires.state()).desired, &made.desired);
        }
    }
}

/// What becomes of an edit.
#[derive(Debug, Clone)]
enum Fate {
    Works,
    Unreadable(Index),
    /// At this step, if there are so many.
    Fails(usize, Fault),
}

fn what_comes_of_it() -> impl Strategy<Value = Fate> {
    let faults = [Kind::Read, Kind::Write, Kind::Child].map(Kind::errors).concat();
    prop_oneof![
        Just(Fate::Works),
        any::<Index>().prop_map(Fate::Unreadable),
        (0..120_usize, prop::sample::select(faults)).prop_map(|(at, fault)| Fate::Fails(at, fault)),
    ]
}

impl<'a> Story<'a> {
    /// What the live generation keeps of its settings is what serves: a daemon that starts now, and can read nothing
    /// else, changes nothing.
    async fn is_held(&mut self, last: Wish<'a>) {
        let present = self.present().await.expect("a look");
        let kept = before(&self.model, self.desires.state(), &present, None);
        let spec = &self.desires.made(last).loaded.spec;
        assert_eq!(kept.spec.as_ref(), Some(spec));
        assert!(kept.drifted.is_empty(), "{:?}", kept.drifted);
        self.is_right(last).await;
    }
}

/// What the generator leaves out is tested by nothing here.
#[test]
fn every_key_is_varied() {
    let mut seen = BTreeMap::<String, BTreeSet<String>>::new();
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig::default(),
        TestRng::deterministic_rng(Default::default()),
    );
    for _ in 0..200 {
        let file = specs::file().new_tree(&mut runner).expect("a file").current();
        let text = ConfigText::new("vpc.toml", file.text());
        let loaded = load(Some(&text), &BTreeMap::new());
        let spec = loaded
            .unwrap_or_else(|problems| panic!("{problems}\n{}", text.text))
            .spec;
        for (key, value) in spec.values() {
            // `backends["db"].listen` is `backends.listen`.
            let key = match (key.split_once('['), key.split_once("].")) {
                (Some((table, _)), Some((_, key))) => format!("{table}.{key}"),
                _ => key,
            };
            seen.entry(key).or_default().insert(value);
        }
    }
    for section in SECTIONS {
        for key in section.keys {
            let path = section.path(key);
            let expected = match path.as_str() {
                "version" => 1,
                _ => 2,
            };
            let values = seen.get(&path).map_or(0, BTreeSet::len);
            assert!(values >= expected, "{path} has {values} values");
        }
    }
}
