//! A state directory is brought to a newer format, and something goes wrong at every step of it. Whatever is left, the next
//! start brings it there; and an earlier version leaves it alone as soon as anything in it is new.

use std::io::ErrorKind;

use dstack_vpc::apply::format::{
    FORMAT, FormatError, Step, check, check_against, path, take_over, take_over_by,
};
use dstack_vpc::apply::{DiskError, Machine, replace};
use dstack_vpc::paths::StateDir;

use super::disk::Loss;
use super::machine::{Fault, Kind, Model};

/// What format 1 has, and format 2 has elsewhere.
const OLD: &str = "old.json";
const NEW: &str = "new.json";

/// Formats of a later day: 0 and 1 as they are, 2 with a file moved and rewritten, 3 with a file more.
const STEPS: [Step<Model>; 3] = [|_, _| Ok(()), move_and_rewrite, add];

fn move_and_rewrite(machine: &Model, state: &StateDir) -> Result<(), DiskError> {
    let (old, new) = (state.root().join(OLD), state.root().join(NEW));
    let failed = |doing, path: &std::path::Path, source| DiskError {
        doing,
        path: path.to_owned(),
        source,
    };
    match machine.read(&old) {
        Ok(bytes) => replace(machine, &new, &[b"new ", &bytes[..]].concat())?,
        // It was taken before, up to here.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading", &old, error)),
    }
    machine.remove(&old).map_err(|e| failed("removing", &old, e))?;
    machine
        .sync(state.root())
        .map_err(|e| failed("syncing", state.root(), e))
}

fn add(machine: &Model, state: &StateDir) -> Result<(), DiskError> {
    replace(machine, &state.root().join("more.json"), b"more")
}

/// A directory as the version with these steps would have left it.
fn left_by(steps: &[Step<Model>], state: &StateDir) -> Model {
    let model = Model::new(state);
    if !steps.is_empty() {
        take_over_by(&model, state, steps).expect("nothing goes wrong");
    }
    replace(&model, &state.root().join(OLD), b"words").expect("nothing goes wrong");
    model
}

fn is_whole(model: &Model, state: &StateDir, told: &str) {
    let read = |name: &str| model.read(&state.root().join(name)).ok();
    assert_eq!(check_against(model, state, 3).expect(told), 3, "{told}");
    assert_eq!(read(OLD), None, "{told}");
    assert_eq!(read(NEW).as_deref(), Some(&b"new words"[..]), "{told}");
    assert_eq!(read("more.json").as_deref(), Some(&b"more"[..]), "{told}");
    // It is there for good: nothing is written any more.
    model.plan(None);
    take_over_by(model, state, &STEPS).expect(told);
    let written = model.steps().into_iter().filter(|(kind, _)| *kind == Kind::Write);
    assert_eq!(written.count(), 0, "{told}");
}

#[test]
fn wherever_it_ends_it_is_brought_to_an_end_later_and_earlier_versions_leave_it_alone() {
    let state = StateDir::new("/state");
    for before in [&STEPS[..0], &STEPS[..1]] {
        let fresh = left_by(before, &state);
        let undisturbed = fresh.clone();
        undisturbed.plan(None);
        take_over_by(&undisturbed, &state, &STEPS).unwrap();
        let steps = undisturbed.steps();
        assert!(steps.len() > 10, "{steps:?}");
        is_whole(&undisturbed, &state, "nothing went wrong");

        for (at, (kind, what)) in steps.into_iter().enumerate() {
            for fault in [kind.errors(), kind.stops()].concat() {
                let losses: &[Loss] = match fault {
                    Fault::Stop { .. } => &[Loss::Nothing, Loss::Everything, Loss::Some(1), Loss::Some(2)],
                    _ => &[Loss::Nothing],
                };
                for loss in losses {
                    let told = format!("from {}, step {at} ({what}): {fault:?}, {loss:?}", before.len());
                    let model = fresh.clone();
                    model.plan(Some((at, fault)));
                    let _ = take_over_by(&model, &state, &STEPS);
                    model.plan(None);
                    model.cut(*loss);
                    let begun = model.read(&state.root().join(NEW)).is_ok()
                        || model.read(&state.root().join(OLD)).is_err();
                    match check_against(&model, &state, 1) {
                        Ok(_) => assert!(!begun, "an earlier version would misread it: {told}"),
                        Err(FormatError::Newer { .. }) => {}
                        Err(other) => panic!("{other}: {told}"),
                    }
                    take_over_by(&model, &state, &STEPS).expect(&told);
                    is_whole(&model, &state, &told);
                }
            }
        }
    }
}

#[test]
fn a_new_directory_is_of_our_format_and_what_makes_no_sense_is_left_as_it_is() {
    let state = StateDir::new("/state");
    let model = Model::new(&state);
    assert_eq!(check(&model, &state).unwrap(), 0);
    take_over(&model, &state).unwrap();
    assert_eq!(check(&model, &state).unwrap(), FORMAT);

    let later = format!(r#"{{"format":{},"written_by":"dstack-vpc 9.0.0"}}"#, FORMAT + 1);
    for (bytes, words) in [
        (later.as_str(), "written by dstack-vpc 9.0.0"),
        ("", "does not tell which version"),
        (
            r#"{"format":"two","written_by":"x"}"#,
            "does not tell which version",
        ),
        (
            r#"{"format":1,"from":1,"written_by":"x"}"#,
            "no step leads from format 1 to 1",
        ),
    ] {
        let model = Model::new(&state);
        replace(&model, &path(&state), bytes.as_bytes()).unwrap();
        model.plan(None);
        let error = take_over(&model, &state).unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("Nothing was touched"),
            "{error}"
        );
        let written = model.steps().into_iter().filter(|(kind, _)| *kind == Kind::Write);
        assert_eq!(written.count(), 0, "{error}");
    }
}
