//! What a reconcile costs, counted and not timed: steps on the machine, and memory that is asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;

use dstack_vpc::plan::{Listeners, Present, plan};

use super::edits::{BACKEND, Desires, LIST, Wish, make};
use super::machine::Kind;
use super::story::Story;

/// So many backends; the first of them is where `upstream` says.
fn backends(count: usize, upstream: &str) -> String {
    let mut text = String::new();
    for number in 0..count {
        let upstream = if number == 0 { upstream } else { "127.0.0.1:9000" };
        let (name, host) = (format!("b{number}"), format!("b{number}.local"));
        let _ = write!(
            text,
            "[[backends]]\nname = \"{name}\"\nserver_name = \"{host}\"\nupstream = \"{upstream}\"\n"
        );
    }
    text
}

/// The steps of moving one of so many backends.
async fn steps_of_a_move(count: usize) -> Vec<(Kind, String)> {
    let (before, after) = (
        backends(count, "127.0.0.1:9000"),
        backends(count, "127.0.0.1:9001"),
    );
    let (before, after) = (Wish::new(&before), Wish::new(&after));
    let desires = Desires::new(&[before, after]);
    let mut story = Story::new(&desires);
    story.first_start(before).await.expect("a first start");
    steps_of(&mut story, after).await
}

async fn steps_of<'a>(story: &mut Story<'a>, wish: Wish<'a>) -> Vec<(Kind, String)> {
    let taken = story.model.steps().len();
    story.reconcile(wish).await.expect("an edit");
    story.model.steps().split_off(taken)
}

#[tokio::test(start_paused = true)]
async fn an_edit_takes_as_many_steps_with_a_thousand_backends_as_with_ten() {
    let (few, many) = (steps_of_a_move(10).await, steps_of_a_move(1_000).await);
    assert!(
        few.iter().any(|(kind, _)| *kind == Kind::Child),
        "a check and a reload"
    );
    assert_eq!(few, many);
}

#[tokio::test(start_paused = true)]
async fn who_may_call_does_not_wait_for_the_disk_and_nothing_only_looks() {
    let desires = Desires::shared();
    let mut story = Story::new(desires);
    story.first_start(BACKEND).await.expect("a first start");
    let nothing = steps_of(&mut story, BACKEND).await;
    assert!(
        nothing.iter().all(|(kind, _)| *kind != Kind::Write),
        "{nothing:?}"
    );

    let steps = steps_of(&mut story, LIST).await;
    let told = steps
        .iter()
        .position(|(_, what)| what.contains("UpdateListeners"));
    let wrote = steps.iter().position(|(kind, _)| *kind == Kind::Write);
    assert!(told.is_some() && told < wrote, "{steps:?}");
    let asked = |what: &str| steps.iter().filter(|(_, step)| step.contains(what)).count();
    assert_eq!(
        (asked("UpdateListeners"), asked("ReloadNginx"), asked("check")),
        (1, 0, 0),
        "{steps:?}"
    );
}

#[test]
fn memory_that_is_asked_for_grows_as_the_backends_do() {
    let asked = |count: usize| {
        let (before, after) = (
            backends(count, "127.0.0.1:9000"),
            backends(count, "127.0.0.1:9001"),
        );
        let desires = Desires::new(&[]);
        let begin = ASKED.get();
        let before = make(Wish::new(&before), desires.state());
        let after = make(Wish::new(&after), desires.state());
        let files = before
            .desired
            .files
            .into_iter()
            .map(|(path, file)| (path, file.bytes));
        let present = Present {
            generation: Some(1),
            files: files.collect(),
            listeners: Listeners::Open(Box::new(before.desired.listeners)),
            ..Present::default()
        };
        assert!(!plan(&after.desired, &present).is_empty());
        (ASKED.get() - begin) as f64
    };
    asked(10);
    let (few, many) = (asked(250), asked(2_000));
    let grown = many / few;
    assert!(
        (4.0..12.0).contains(&grown),
        "8 times the backends ask for {grown:.1} times the memory"
    );
}

thread_local! {
    /// Bytes that this thread asked for.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work; counting touches a plain cell that needs no memory itself.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ASKED.try_with(|asked| asked.set(asked.get() + layout.size()));
        // SAFETY: what the caller promises is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
