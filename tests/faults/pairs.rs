//! Two faults: one in an edit, and another while the first is being put right.
//!
//! There are too many to try all of them in each run: `FAULTS=all` (`make faults`) does, else one in [`STRIDE`] is tried.

use super::edits::{DOMAIN, Desires, EDITS};
use super::machine::{Fault, Kind};
use super::single::{Here, Tally, after_the_stop, everything, steps};
use super::story::Story;

const STRIDE: usize = 97;

#[tokio::test(start_paused = true)]
async fn a_second_fault_on_the_way_back_is_put_right_as_well() {
    let desires = Desires::shared();
    let stride = if everything() { 1 } else { STRIDE };
    let mut tally = Tally::default();
    let mut turn = 0;
    for (number, edit) in EDITS.iter().enumerate() {
        let before = Story::before(edit, desires).await;
        for (at, (kind, what)) in steps(&before, edit).await.into_iter().enumerate() {
            for first in [error(kind), Fault::Stop { half: true }] {
                // First without the second, to see where it could be.
                let mut once = before.clone();
                once.model.plan(Some((at, first)));
                let _ = once.run(edit).await;
                let stopped = once.model.is_dead();
                if stopped {
                    after_the_stop(&mut once, edit, None);
                }
                let mut healed = once.clone();
                let from = if stopped { 0 } else { at + 1 };
                if stopped {
                    healed.model.plan(None);
                    let _ = healed.start(edit.wish).await;
                }
                for (second, (_, then)) in healed.model.steps().into_iter().enumerate().skip(from) {
                    turn += 1;
                    if turn % stride != 0 {
                        continue;
                    }
                    for kind in [error(Kind::Write), Fault::Exit1, Fault::Stop { half: true }] {
                        let _here = Here::new(format!(
                            "{}, step {at} ({what}): {first:?}, then step {second} ({then}): {kind:?}",
                            edit.name
                        ));
                        let mut story = match stopped {
                            true => once.clone(),
                            false => before.clone(),
                        };
                        if stopped {
                            story.model.plan(Some((second, kind)));
                            let _ = story.start(edit.wish).await;
                        } else {
                            story.model.plan_both((at, first), (second, kind));
                            let _ = story.run(edit).await;
                        }
                        tally.add(number, format!("{} and {}", name(first), name(kind)));
                        story.model.start_anew();
                        story.model.plan(None);
                        story.start(edit.wish).await.expect("nothing goes wrong any more");
                        // What supervisord did not answer in time may be owed until the next look.
                        let again = story.reconcile(edit.wish).await;
                        again.expect("nothing goes wrong any more");
                        story.is_right(edit.wish).await;
                    }
                }
            }
        }
    }
    let points = tally.print("pairs");
    assert!(points > 300, "{points}");
}

/// Headscale is stopped for its restart, which comes to nothing; and then something of the generation to go back to
/// cannot be read.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_on_the_way_back_is_not_taken_for_gone() {
    let desires = Desires::shared();
    let edit = EDITS.iter().find(|edit| edit.wish == DOMAIN).expect("an edit");
    let before = Story::before(edit, desires).await;
    let all = steps(&before, edit).await;
    let at = all.iter().position(|(_, what)| what == "RestartHeadscale");
    let first = (at.expect("a restart"), Fault::Hung);
    let mut once = before.clone();
    once.model.plan(Some(first));
    once.run(edit).await.expect_err("a failed restart");
    let mut points = 0;
    for (second, (kind, then)) in once.model.steps().into_iter().enumerate().skip(first.0 + 1) {
        if kind != Kind::Read {
            continue;
        }
        let _here = Here::new(format!("step {second} ({then})"));
        let mut story = before.clone();
        story.model.plan_both(first, (second, error(kind)));
        let _ = story.run(edit).await;
        story.model.plan(None);
        story
            .reconcile(edit.before[0])
            .await
            .expect("nothing goes wrong any more");
        story.is_right(edit.before[0]).await;
        points += 1;
    }
    assert!(points > 10, "{points}");
}

fn error(kind: Kind) -> Fault {
    kind.errors()[0]
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Stop { .. } => "stop",
        _ => "error",
    }
}
