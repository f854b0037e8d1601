//! A plan does what is needed and nothing else, and says why.

use std::collections::{BTreeMap, BTreeSet};

use dstack_vpc::apply;
use dstack_vpc::desired::{Desired, Program, Reader};
use dstack_vpc::plan::{ActionKind, After, Before, Listeners, Plan, Present, plan};
use dstack_vpc::spec::Spec;
use proptest::prelude::*;

use super::edits::{Desires, Made, PATIENT, PORT, SERVER, Wish, render};
use super::properties::{Texts, edit, runtime, story};
use super::specs;
use super::story::{Story, bytes};
use super::world;

/// From so many changes on they are not told apart.
const MANY: usize = 13;

proptest! {
    #![proptest_config(specs::cases(24))]

    #[test]
    fn a_plan_is_minimal_and_empty_once_it_is_applied((a, b) in edit()) {
        let texts = Texts::of([&a, &b]);
        let wishes = texts.wishes();
        let desires = Desires::new(&wishes);
        runtime().block_on(async {
            let mut story = story(&desires, &wishes[..1]).await;
            let now = story.present().await.expect("a look");
            let (old, new) = (desires.made(wishes[0]), desires.made(wishes[1]));
            let mut to = plan(&new.desired, &now);
            assert_eq!(to.is_empty(), old.desired == new.desired || alike(&old.desired, &new.desired));
            every_action_has_its_cause(&to, &new.desired, &now);
            every_action_is_needed(&to, &story, &new.desired, &now).await;
            find_causes(&mut to, (old, new), wishes[1], &now, &desires);
            every_cause_is_real(&to, old, new);

            story.reconcile(wishes[1]).await.expect("an edit");
            let now = story.present().await.expect("a look");
            let after = plan(&new.desired, &now);
            assert!(after.is_empty(), "{after:?}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_supervisord_starts_anew_is_started_once() {
    let elsewhere = Wish::new(
        "role = \"server\"\nallowed_apps = \"any\"\n[vpn]\nbase_domain = \"other.internal\"\n\
         [headscale]\nprogram = \"/opt/headscale\"\n",
    );
    let desires = Desires::new(&[PORT, PATIENT, SERVER, elsewhere]);
    for (from, to, program, told) in [
        (PORT, PATIENT, Program::Nginx, ActionKind::RestartNginx),
        (
            SERVER,
            elsewhere,
            Program::Headscale,
            ActionKind::RestartHeadscale,
        ),
    ] {
        let mut story = Story::new(&desires);
        story.first_start(from).await.expect("a first start");
        let planned = plan(desires.of(to), &story.present().await.expect("a look"));
        let kinds: Vec<_> = planned.actions.iter().map(|action| action.kind).collect();
        assert!(
            kinds.contains(&told) && kinds.contains(&ActionKind::UpdateSupervisor),
            "{kinds:?}"
        );
        let starts = |story: &Story<'_>| story.model.world().starts[program.name()];
        let before = starts(&story);
        story.reconcile(to).await.expect("an edit");
        assert_eq!(starts(&story), before + 1, "{kinds:?}");
        story.is_right(to).await;
    }
}

/// Nothing of it is for programs, files or listeners.
fn alike(one: &Desired, other: &Desired) -> bool {
    one.files == other.files && one.listeners == other.listeners && one.programs == other.programs
}

/// Take away the difference that an action is for, and the action is gone; nothing else brings it about.
fn every_action_has_its_cause(to: &Plan, wanted: &Desired, now: &Present) {
    let has = |plan: &Plan, kind: ActionKind| plan.actions.iter().any(|action| action.kind == kind);
    for action in &to.actions {
        let mut without = now.clone();
        let reader = match action.kind {
            ActionKind::UpdateListeners => {
                without.listeners = Listeners::Open(Box::new(wanted.listeners.clone()));
                None
            }
            ActionKind::UpdateSupervisor => Some(Reader::Supervisord),
            ActionKind::ReloadNginx | ActionKind::RestartNginx => Some(Reader::Nginx),
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

/// Without it the machine is not as it should be.
///
/// But for a program whose section changed: only what supervisord has read, and not its file, which may have been edited
/// since, decides whether that is started anew, and then need not be told.
async fn every_action_is_needed(to: &Plan, story: &Story<'_>, wanted: &Desired, now: &Present) {
    let sections = |files: &BTreeMap<String, Vec<u8>>| world::sections(&files["supervisor/supervisord.conf"]);
    let (is, will_be) = (sections(&now.files), sections(&bytes(wanted)));
    for action in &to.actions {
        let told = match action.kind {
            ActionKind::ReloadNginx | ActionKind::RestartNginx => Program::Nginx.name(),
            ActionKind::RestartHeadscale => Program::Headscale.name(),
            _ => "",
        };
        if is.get(told) != will_be.get(told) {
            continue;
        }
        let mut less = to.clone();
        less.actions.retain(|other| other.kind != action.kind);
        let machine = story.clone();
        let (model, state) = (&machine.model, machine.desires.state());
        let applied = apply::apply(model, state, wanted, now, &less, &machine.order()).await;
        let listeners = model.world().listeners;
        let done =
            applied.is_ok() && machine.unserved().is_empty() && listeners.as_ref() == Some(&wanted.listeners);
        assert!(!done, "{action:?} was not needed");
    }
}

fn find_causes(
    to: &mut Plan,
    (old, new): (&Made, &Made),
    wish: Wish<'_>,
    now: &Present,
    desires: &Desires<'_>,
) {
    let before = Before {
        spec: Some(old.loaded.spec.clone()),
        facts: old.desired.facts.clone(),
        drifted: Vec::new(),
    };
    let after = After {
        spec: &new.loaded.spec,
        facts: &new.facts,
        source: &|key| Some(new.loaded.source(key)),
        render: &|spec| Some(render(spec, &new.facts, wish, desires.state())),
    };
    to.find_causes(&new.desired, now, &before, &after);
}

/// What is named differs, all keys that differ are named, and each action names what it is for.
fn every_cause_is_real(to: &Plan, old: &Made, new: &Made) {
    let named: Vec<&str> = to.causes.iter().map(|cause| cause.what.as_str()).collect();
    let expected = differing(&old.loaded.spec, &new.loaded.spec);
    let of_facts = ["changed", "renewed"];
    let keys: BTreeSet<&str> = named
        .iter()
        .copied()
        .filter(|what| what.contains(['.', '"']) || expected.contains(*what))
        .filter(|what| !what.starts_with("the template ") && !what.starts_with("programs."))
        .collect();
    assert_eq!(keys, expected.iter().map(String::as_str).collect(), "{named:?}");
    let files: BTreeSet<&str> = to.files.iter().map(|file| file.path.as_str()).collect();
    for cause in &to.causes {
        let other = !keys.contains(cause.what.as_str());
        assert!(
            !other || of_facts.iter().any(|word| cause.what.contains(word)),
            "{cause:?}"
        );
        for path in &cause.files {
            assert!(files.contains(path.as_str()), "{path} does not change: {cause:?}");
        }
        if expected.len() < MANY && !cause.listeners {
            // At least what is kept of the settings.
            assert!(!cause.files.is_empty(), "{cause:?}");
        }
    }
    for action in &to.actions {
        for reason in action.reason.split(", ") {
            assert!(
                named.contains(&reason),
                "{:?} is for {reason:?}, not for {named:?}",
                action.kind
            );
        }
    }
}

/// Said as a plan says it.
fn differing(old: &Spec, new: &Spec) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let (old, new) = (by_key(old), by_key(new));
    for (key, value) in &new {
        match (key, old.get(key)) {
            ((Some(name), _), None) => drop(found.insert(format!("{name} was added"))),
            ((Some(name), key), Some(was)) if was != value => {
                found.insert(format!("{key} of {name} changed"));
            }
            ((None, key), Some(was)) if was != value => drop(found.insert(format!("{key} changed"))),
            _ => {}
        }
    }
    let gone = old.keys().filter(|key| !new.contains_key(key));
    found.extend(gone.map(|(name, _)| format!("{} was removed", name.as_deref().unwrap_or_default())));
    found
}

/// By what it is a key of, if that is a backend or a forward, and key.
fn by_key(spec: &Spec) -> BTreeMap<(Option<String>, String), String> {
    let values = spec.values().into_iter().map(|(path, value)| {
        let Some((table, (index, key))) = path
            .split_once('[')
            .and_then(|(table, rest)| Some((table, rest.split_once("].")?)))
        else {
            return ((None, path), value);
        };
        let index: usize = index.parse().expect("a number");
        let owner = match table {
            "backends" => format!("backend \"{}\"", spec.backends[index].name),
            _ => format!("forward \"{}\"", spec.forwards[index].name),
        };
        ((Some(owner), key.to_owned()), value)
    });
    values.collect()
}
