//! One fault at a time, at every step of every edit.

use std::collections::BTreeMap;

use dstack_vpc::apply::{Applied, Left};

use super::disk::Loss;
use super::edits::{Desires, EDITS, Edit, Wish};
use super::machine::{Fault, Kind};
use super::story::{Failed, Story};

/// What comes after our process was stopped.
const LOSSES: &[Option<Loss>] = &[
    None,
    Some(Loss::Nothing),
    Some(Loss::Everything),
    Some(Loss::Some(1)),
    Some(Loss::Some(2)),
    Some(Loss::Some(3)),
];

/// Whether everything is tried that there is, which takes minutes.
pub fn everything() -> bool {
    std::env::var("FAULTS").as_deref() == Ok("all")
}

/// Ways to go on after a fault: one after the other, or all each time.
#[derive(Default)]
struct Turns(usize);

impl Turns {
    fn next<'a, T>(&mut self, ways: &'a [T]) -> &'a [T] {
        if everything() {
            return ways;
        }
        self.0 += 1;
        let at = self.0 % ways.len();
        &ways[at..=at]
    }
}

/// Points by edit and by what went wrong.
#[derive(Default)]
pub struct Tally(BTreeMap<(usize, String), usize>);

impl Tally {
    pub fn add(&mut self, edit: usize, what: impl Into<String>) {
        *self.0.entry((edit, what.into())).or_default() += 1;
    }

    pub fn print(&self, title: &str) -> usize {
        println!("{title}:");
        for (edit, Edit { name, .. }) in EDITS.iter().enumerate() {
            let kinds = self.0.iter().filter(|((at, _), _)| *at == edit);
            let kinds: Vec<_> = kinds.map(|((_, what), n)| format!("{what} {n}")).collect();
            println!("  {name}: {}", kinds.join(", "));
        }
        let sum = self.0.values().sum();
        println!("  {sum} points");
        sum
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_step_fails_a_whole_generation_serves_and_the_next_look_puts_it_right() {
    let desires = Desires::shared();
    let (mut tally, mut turns) = (Tally::default(), Turns::default());
    for (number, edit) in EDITS.iter().enumerate() {
        let before = Story::before(edit, desires).await;
        for (at, (kind, what)) in steps(&before, edit).await.into_iter().enumerate() {
            for fault in kind.errors() {
                let _here = Here::new(format!("{}, step {at} ({what}): {fault:?}", edit.name));
                let mut story = before.clone();
                story.model.plan(Some((at, fault)));
                let outcome = story.run(edit).await;
                story.model.plan(None);
                fails_well(&story, edit, &outcome);
                if !edit.before.is_empty() {
                    story.clone().tells(edit.wish, outcome).await;
                }
                let name = match fault {
                    Fault::Errno(errno) => format!("{errno:?}"),
                    other => format!("{other:?}"),
                };
                tally.add(number, name);

                // The daemon goes on, or starts again; what was wished is wished still, or taken back.
                let was = edit.before.last().copied().unwrap_or(edit.wish);
                let ways = [(edit.wish, true), (edit.wish, false), (was, true), (was, false)];
                for (wish, goes_on) in turns.next(&ways) {
                    again(story.clone(), edit, *wish, *goes_on).await;
                }
            }
        }
    }
    let points = tally.print("errors");
    assert!(points > 1500, "{points}");
}

/// The steps of an edit when nothing goes wrong.
pub async fn steps(before: &Story<'_>, edit: &Edit) -> Vec<(Kind, String)> {
    let mut story = before.clone();
    story.model.plan(None);
    story.run(edit).await.expect("nothing goes wrong");
    let steps = story.model.steps();
    story.is_right(edit.wish).await;
    steps
}

fn fails_well(story: &Story<'_>, edit: &Edit, outcome: &Result<Applied, Failed>) {
    let first = edit.before.is_empty();
    let mut wishes: Vec<Wish<'static>> = edit.before.last().copied().into_iter().collect();
    match outcome {
        Ok(_) => wishes = vec![edit.wish],
        Err(Failed::Apply(error)) if !first && matches!(error.left, Left::Unproven(_)) => {
            panic!("one fault is too much for it: {error:?}");
        }
        Err(_) if first => wishes = vec![edit.wish],
        Err(_) => {}
    }
    story.is_whole(&wishes, first);
    if !first && outcome.is_err() {
        story.is_served();
    }
}

async fn again(mut story: Story<'_>, edit: &Edit, wish: Wish<'static>, goes_on: bool) {
    if wish != edit.wish {
        story.again = None;
    }
    // Where `up` failed, the container starts again.
    let outcome = match goes_on && story.model.world().supervisord.is_some() {
        true => story.reconcile(wish).await,
        false => {
            story.model.start_anew();
            story.start(wish).await
        }
    };
    outcome.expect("nothing goes wrong any more");
    // What supervisord did not answer in time may be owed until the next look.
    story.reconcile(wish).await.expect("nothing goes wrong any more");
    story.is_right(wish).await;
}

#[tokio::test(start_paused = true)]
async fn wherever_it_is_stopped_a_whole_generation_is_found_and_the_next_start_puts_it_right() {
    let desires = Desires::shared();
    let mut losses = Turns::default();
    let (mut tally, mut turns) = (Tally::default(), Turns::default());
    for (number, edit) in EDITS.iter().enumerate() {
        let before = Story::before(edit, desires).await;
        for (at, (kind, what)) in steps(&before, edit).await.into_iter().enumerate() {
            for fault in kind.stops() {
                let (some, others) = LOSSES.split_at(3);
                for loss in losses.next(&[some, others]).iter().copied().flatten() {
                    let _here = Here::new(format!(
                        "{}, step {at} ({what}): {fault:?}, {loss:?} lost",
                        edit.name
                    ));
                    let mut story = before.clone();
                    story.model.plan(Some((at, fault)));
                    let _ = story.run(edit).await;
                    assert!(story.model.is_dead());
                    after_the_stop(&mut story, edit, *loss);
                    let name = loss.map_or("killed".to_owned(), |loss| {
                        format!("power cut, {} lost", words(loss))
                    });
                    tally.add(number, name);
                    let was = edit.before.last().copied().unwrap_or(edit.wish);
                    for wish in turns.next(&[edit.wish, was]) {
                        again(story.clone(), edit, *wish, false).await;
                    }
                }
            }
        }
    }
    let points = tally.print("stops");
    assert!(points > 2500, "{points}");
}

/// What is found before anything is done about it.
pub fn after_the_stop(story: &mut Story<'_>, edit: &Edit, loss: Option<Loss>) {
    match loss {
        None => story.model.start_anew(),
        Some(loss) => story.model.cut(loss),
    }
    let wishes: Vec<Wish<'_>> = edit
        .before
        .last()
        .copied()
        .into_iter()
        .chain([edit.wish])
        .collect();
    story.is_whole(&wishes, edit.before.is_empty());
}

fn words(loss: Loss) -> &'static str {
    match loss {
        Loss::Nothing => "nothing",
        Loss::Everything => "everything unsynced",
        Loss::Some(_) => "something unsynced",
    }
}

/// Says where a test was when it failed.
pub struct Here(String);

impl Here {
    pub fn new(what: String) -> Self {
        Self(what)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at: {}", self.0);
        }
    }
}
