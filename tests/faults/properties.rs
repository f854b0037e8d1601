//! What holds for any machine and any edits.

use std::collections::BTreeMap;

use dstack_vpc::apply::{self, generation};
use dstack_vpc::paths::StateDir;
use dstack_vpc::plan::{ActionKind, Listeners, Plan, Present, plan};
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};

use super::edits::{Desires, EDITS, WISHES, Wish, render};
use super::machine::{Fault, Model};
use super::story::Story;

fn any_wish() -> impl Strategy<Value = Wish> {
    prop::sample::select(WISHES)
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

/// A machine on which one wish after the other was brought about.
async fn story<'a>(desires: &'a Desires, wishes: &[Wish]) -> Story<'a> {
    let mut story = Story::before(&EDITS[0], desires).await;
    story.first_start(wishes[0]).await.expect("a first start");
    for wish in &wishes[1..] {
        story.reconcile(*wish).await.expect("an edit");
    }
    story
}

/// What is there, as the daemon sees it.
async fn present(model: &Model, state: &StateDir) -> Present {
    let mut present = apply::look(model, state).await.expect("a look");
    let settings = model.world().listeners.expect("open listeners");
    present.listeners = Listeners::Open(Box::new(settings));
    present
}

/// The live files, and what runs.
fn everything(story: &Story<'_>) -> (BTreeMap<String, Vec<u8>>, String) {
    let (model, state) = (&story.model, story.desires.state());
    let files = generation::files(model, state, story.current().expect("a live generation"));
    (files, format!("{:?}", model.world()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_way_there_and_back_restores_every_byte(one: Vec<prop::sample::Index>, a in any_wish(), b in any_wish()) {
        let desires = Desires::shared();
        runtime().block_on(async {
            let earlier = one.iter().take(3).map(|at| *at.get(WISHES));
            let wishes: Vec<Wish> = earlier.chain([a]).collect();
            let mut story = story(desires, &wishes).await;
            let before = everything(&story);
            story.reconcile(b).await.expect("there");
            story.is_right(b).await;
            story.reconcile(a).await.expect("back");
            story.is_right(a).await;
            assert_eq!(everything(&story), before);
        });
    }

    /// Edits that are refused by their reader, or come to nothing at any step, count for nothing.
    #[test]
    fn any_edits_end_in_the_last_valid_one(
        edits in prop::collection::vec((any_wish(), prop::option::of(0..120_usize)), 1..8),
    ) {
        let desires = Desires::shared();
        runtime().block_on(async {
            let mut last = WISHES[0];
            let mut story = story(desires, &[last]).await;
            for (wish, fails_at) in edits {
                story.model.plan(fails_at.map(|at| (at, Fault::Exit1)));
                let worked = story.reconcile(wish).await.is_ok_and(|applied| applied.proven);
                story.model.plan(None);
                match worked {
                    true => last = wish,
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

    #[test]
    fn a_plan_is_minimal_and_empty_once_it_is_applied(a in any_wish(), b in any_wish()) {
        let desires = Desires::shared();
        runtime().block_on(async {
            let mut story = story(desires, &[a]).await;
            let state = desires.state();
            let now = present(&story.model, state).await;
            let to = plan(desires.of(b), &now);
            assert_eq!(to.is_empty(), a == b);
            every_action_has_its_cause(&to, desires.of(b), &now);
            story.reconcile(b).await.expect("an edit");
            assert!(plan(desires.of(b), &present(&story.model, state).await).is_empty());
        });
    }

    #[test]
    fn the_same_wish_is_rendered_to_the_same_bytes(wish in any_wish()) {
        let desires = Desires::shared();
        prop_assert_eq!(&render(wish, desires.state()), desires.of(wish));
    }
}

/// Take away the difference that an action is for, and the action is gone; nothing else brings it about.
fn every_action_has_its_cause(to: &Plan, wanted: &dstack_vpc::desired::Desired, now: &Present) {
    use dstack_vpc::desired::{Program, Reader};
    let has = |plan: &Plan, kind: ActionKind| plan.actions.iter().any(|action| action.kind == kind);
    for action in &to.actions {
        assert!(!action.reason.is_empty());
        let mut without = now.clone();
        let reader = match action.kind {
            ActionKind::UpdateListeners => {
                without.listeners = Listeners::Open(Box::new(wanted.listeners.clone()));
                None
            }
            ActionKind::UpdateSupervisor { .. } => Some(Reader::Supervisord),
            ActionKind::ReloadNginx => Some(Reader::Nginx),
            ActionKind::RestartHeadscale => Some(Reader::Headscale),
            ActionKind::Start(program) => panic!("{program:?} runs"),
        };
        if let Some(reader) = reader {
            without.files.retain(|path, _| Reader::of(path) != reader);
            let same = wanted.files.iter().filter(|(_, file)| file.reader == reader);
            without
                .files
                .extend(same.map(|(path, file)| (path.clone(), file.bytes.clone())));
        }
        if reader == Some(Reader::Supervisord) {
            // It may have been for a program that supervisord does not know, too.
            let services = without.services.as_mut().expect("supervisord runs");
            let some = services[Program::Daemon.name()].clone();
            for program in wanted.programs.keys() {
                services
                    .entry(program.name().to_owned())
                    .or_insert_with(|| some.clone());
            }
        }
        let left = plan(wanted, &without);
        assert!(!has(&left, action.kind), "{action:?}");
        // And the others are still there: no action stands for two differences, but that a program has to be known
        // before it is told anything.
        for other in to.actions.iter().filter(|other| other.kind != action.kind) {
            assert!(has(&left, other.kind), "{action:?} took {other:?} along");
        }
    }
}
