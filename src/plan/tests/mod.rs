//! A plan is minimal, and each action names the difference that causes it.

mod actions;
mod causes;
mod headscale;
mod report;

use super::*;
use crate::desired::{EFFECTIVE, Launch, Templates, desired};
use crate::facts::{Facts, assume};
use crate::paths::StateDir;
use crate::spec::{ConfigText, Loaded, Spec, load};

const DOMAIN: &str = "apps.example.com:443";

fn loaded(text: &str) -> Loaded {
    load(Some(&ConfigText::new("vpc.toml", text)), &BTreeMap::new()).unwrap()
}

fn facts(spec: &Spec, domain: &str) -> Facts {
    let app = "aa00000000000000000000000000000000000001".to_owned();
    let pairs = [
        ("app_id".to_owned(), app),
        ("gateway_domain".to_owned(), domain.to_owned()),
    ];
    assume(&pairs, spec, &StateDir::new("/var/lib/dstack-vpc")).unwrap()
}

fn render(spec: &Spec, facts: &Facts) -> Desired {
    let launch = Launch {
        exe: "/usr/bin/dstack-vpc".into(),
        config: None,
    };
    let state = StateDir::new("/var/lib/dstack-vpc");
    desired(spec, facts, &state, &launch, &Templates::builtin()).unwrap()
}

fn wish(text: &str) -> Desired {
    let spec = loaded(text).spec;
    render(&spec, &facts(&spec, DOMAIN))
}

/// The plan from one file to another, with its causes.
fn explained(from: &str, to: &str, domain: &str) -> Plan {
    explained_with(from, to, facts(&loaded(to).spec, domain))
}

fn explained_with(from: &str, to: &str, now: Facts) -> Plan {
    let (old, new) = (loaded(from), loaded(to));
    let (was, desired) = (wish(from), render(&new.spec, &now));
    let present = after(&was);
    let mut plan = plan(&desired, &present);
    let before = Before {
        spec: Some(old.spec),
        facts: was.facts,
        drifted: Vec::new(),
    };
    let goal = After {
        spec: &new.spec,
        facts: &now,
        source: &|key| Some(new.source(key)),
        render: &|spec| Some(render(spec, &now)),
    };
    plan.find_causes(&desired, &present, &before, &goal);
    plan
}

/// The machine as it is after `desired` was applied.
fn after(desired: &Desired) -> Present {
    let up = |pid| Service {
        state: ServiceState::Up,
        process: crate::supervisor::State::Running,
        pid: Some(pid),
        started: None,
        detail: String::new(),
    };
    let programs = desired.programs.keys().chain([&Program::Daemon]);
    Present {
        generation: Some(1),
        files: desired
            .files
            .iter()
            .map(|(path, file)| (path.clone(), file.bytes.clone()))
            .collect(),
        modes: BTreeMap::new(),
        headscale_read: None,
        listeners: Listeners::Open(Box::new(desired.listeners.clone())),
        services: Some(
            programs
                .zip(100..)
                .map(|(p, pid)| (p.name().to_owned(), up(pid)))
                .collect(),
        ),
        owed: false,
        held: BTreeSet::new(),
    }
}

fn kinds(plan: &Plan) -> Vec<ActionKind> {
    plan.actions.iter().map(|action| action.kind).collect()
}

const PLAIN: &str = "";
const SERVER: &str = "role = \"server\"\nallowed_apps = [\"aa00000000000000000000000000000000000001\"]\n";
const FORWARD: &str = "[[forwards]]\nname = \"db\"\nlisten = \"127.0.0.1:27018\"\ntarget_app = \"aa00000000000000000000000000000000000001\"\n";
const BACKEND: &str = "[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\n";

/// What is printed, which is made from nothing but what `--json` prints, and that is as its schema says.
fn printed(plan: &Plan) -> String {
    let report = Report::from(plan);
    let json = serde_json::to_value(&report).unwrap();
    let schema = jsonschema::draft202012::new(&report_schema()).unwrap();
    let errors: Vec<_> = schema.iter_errors(&json).map(|it| it.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{json:#}");
    let again: Report = serde_json::from_value(json).unwrap();
    let text = report.to_text();
    assert_eq!(again.to_text(), text);
    text
}
