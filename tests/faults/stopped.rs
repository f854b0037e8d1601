//! An operator has stopped a program, and an edit goes wrong at any step, or is cut off there.

use dstack_vpc::plan::ServiceState;

use super::edits::{Desires, EDITS, PATIENT};
use super::machine::Fault;
use super::single::Here;
use super::story::Story;

fn is_stopped(story: &Story<'_>) -> bool {
    let programs = story.model.world().supervisord.expect("supervisord runs");
    programs["nginx"].1 == ServiceState::StoppedByOperator
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_stopped_stays_so_wherever_an_edit_ends() {
    let desires = Desires::shared();
    let mut points = 0;
    for edit in EDITS.iter().filter(|edit| !edit.before.is_empty()).step_by(2) {
        let before = Story::before(edit, desires).await;
        before.model.stop_nginx();
        before.model.plan(None);
        let mut whole = before.clone();
        whole.run(edit).await.expect("nothing goes wrong");
        assert!(is_stopped(&whole), "{}", edit.name);
        for (at, (kind, what)) in whole.model.steps().into_iter().enumerate() {
            for fault in [kind.errors()[0], Fault::Stop { half: true }] {
                let _here = Here::new(format!("{}, step {at} ({what}): {fault:?}", edit.name));
                let mut story = before.clone();
                story.model.plan(Some((at, fault)));
                let _ = story.run(edit).await;
                story.model.start_anew();
                story.model.plan(None);
                for _ in 0..2 {
                    // What supervisord did not answer in time may be owed until the next look.
                    story.start(edit.wish).await.expect("nothing goes wrong any more");
                }
                assert!(is_stopped(&story) && !story.is_owed());
                story.is_whole(&[edit.wish], false);
                points += 1;
            }
        }
    }
    println!("{points} points");
    assert!(points > 300, "{points}");
}

/// Once we were about to stop it for a new start, nobody can tell who did.
#[tokio::test(start_paused = true)]
async fn what_an_operator_stops_after_an_edit_was_cut_off_stays_so() {
    let desires = Desires::shared();
    let (mut points, mut undecided) = (0, Vec::new());
    for edit in EDITS.iter().filter(|edit| !edit.before.is_empty()) {
        let before = Story::before(edit, desires).await;
        before.model.plan(None);
        let mut whole = before.clone();
        whole.run(edit).await.expect("nothing goes wrong");
        for (at, (_, what)) in whole.model.steps().into_iter().enumerate() {
            let _here = Here::new(format!("{}, step {at} ({what})", edit.name));
            let mut story = before.clone();
            story.model.plan(Some((at, Fault::Stop { half: true })));
            let _ = story.run(edit).await;
            story.model.start_anew();
            story.model.plan(None);
            if story.model.was_nginx_to_end() {
                undecided.push((edit.wish, what));
                continue;
            }
            story.model.stop_nginx();
            for _ in 0..2 {
                story.start(edit.wish).await.expect("nothing goes wrong any more");
            }
            assert!(is_stopped(&story) && !story.is_owed());
            story.is_whole(&[edit.wish], false);
            points += 1;
        }
    }
    println!("{points} points");
    assert!(points > 500, "{points}");
    // From what says so on disk to what has been done.
    assert!(!undecided.is_empty() && undecided.len() < 8, "{undecided:?}");
    assert!(
        undecided.iter().all(|(wish, _)| *wish == PATIENT),
        "{undecided:?}"
    );
}
