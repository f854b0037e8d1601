//! A plan is minimal, and each action names the difference that causes it.

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

#[test]
fn nothing_to_do_after_it_is_done() {
    for text in [PLAIN, SERVER, BACKEND] {
        let desired = wish(text);
        let plan = plan(&desired, &after(&desired));
        assert!(plan.is_empty(), "{plan:?}");
    }
}

#[test]
fn a_backend_reloads_nginx_and_tells_the_listeners() {
    let plan = plan(&wish(BACKEND), &after(&wish(PLAIN)));
    assert_eq!(
        kinds(&plan),
        [ActionKind::UpdateListeners, ActionKind::ReloadNginx]
    );
    let paths: Vec<_> = plan.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["daemon/vpc.toml", "nginx/nginx.conf"]);
}

#[test]
fn an_allow_list_never_touches_nginx() {
    let before = wish(BACKEND);
    let now = wish(&format!(
        "{BACKEND}allowed_apps = [\"aa00000000000000000000000000000000000001\"]\n"
    ));
    assert_eq!(kinds(&plan(&now, &after(&before))), [ActionKind::UpdateListeners]);
}

#[test]
fn headscale_restarts_when_its_configuration_means_something_else() {
    let before = wish(SERVER);
    let path = "headscale/headscale.yaml";
    let text = String::from_utf8(before.files[path].bytes.clone()).unwrap();
    let kinds_after = |text: &str| {
        let mut now = before.clone();
        now.files.get_mut(path).unwrap().bytes = text.as_bytes().to_vec();
        kinds(&plan(&now, &after(&before)))
    };
    let updates = "disable_check_updates: true\n";
    let moved = text.replace(updates, "") + updates;
    for same in [
        format!("# a remark\n\n{text}"),
        text.replace(updates, "disable_check_updates:   true # a remark\n"),
        text.replace("type: sqlite", "\"type\": 'sqlite'"),
        moved,
    ] {
        assert_ne!(same, text);
        assert_eq!(kinds_after(&same), [], "{same}");
    }
    let mut with_relays = before.clone();
    let relays = with_relays.files[path].clone();
    with_relays.files.insert("headscale/derp.yaml".to_owned(), relays);
    assert_eq!(
        kinds(&plan(&with_relays, &after(&before))),
        [ActionKind::RestartHeadscale]
    );
    for other in [
        text.replace(updates, ""),
        text.replace(updates, "disable_check_updates: \"true\"\n"),
        text.replace("100.128.0.0/10", "100.64.0.0/16"),
        text.replace("region_code:", "# region_code:"),
        format!("{text}not: [yaml\n"),
        String::new(),
    ] {
        assert_ne!(other, text);
        assert_eq!(kinds_after(&other), [ActionKind::RestartHeadscale], "{other}");
    }
}

#[test]
fn nginx_is_restarted_where_an_old_socket_is_in_the_way_of_a_new_one() {
    let listen = |http: &str, more: &str| wish(&format!("[mesh]\nhttp_listen = \"{http}\"\n{more}"));
    let twin = "[metrics]\nlisten = \"127.0.0.1:80\"\n";
    for (from, to, kinds_wanted) in [
        (
            ("0.0.0.0:80", ""),
            ("127.0.0.1:80", ""),
            &[ActionKind::RestartNginx][..],
        ),
        (
            ("127.0.0.1:80", ""),
            ("0.0.0.0:80", ""),
            &[ActionKind::RestartNginx],
        ),
        (("[::]:80", ""), ("[::1]:80", ""), &[ActionKind::RestartNginx]),
        (("[::]:80", ""), ("0.0.0.0:80", ""), &[ActionKind::RestartNginx]),
        // Its port is the daemon's as soon as nginx has given it up.
        (
            ("[::]:80", ""),
            ("[::]:80", twin),
            &[ActionKind::RestartNginx, ActionKind::UpdateListeners],
        ),
        (
            ("[::]:80", twin),
            ("[::]:80", ""),
            &[ActionKind::RestartNginx, ActionKind::UpdateListeners],
        ),
        (("0.0.0.0:80", ""), ("0.0.0.0:81", ""), &[ActionKind::ReloadNginx]),
        (("[::1]:80", ""), ("127.0.0.1:80", ""), &[ActionKind::ReloadNginx]),
    ] {
        let [from, to] = [from, to].map(|(http, more)| listen(http, more));
        assert_eq!(kinds(&plan(&to, &after(&from))), kinds_wanted, "{:?}", to.probes);
        // And so on the way back, which has the same obstacle.
        let failed = after(&to);
        let back = kinds(&back(&failed, &after(&from).files));
        assert_eq!(
            back.contains(&ActionKind::RestartNginx),
            kinds_wanted[0] == ActionKind::RestartNginx,
            "{back:?}"
        );
    }
    // The daemon was killed after the switch: what nginx has open is of a generation before.
    let (old, new) = (listen("0.0.0.0:80", ""), listen("127.0.0.1:80", ""));
    let mut owed = Present {
        owed: true,
        ..after(&new)
    };
    assert!(kinds(&plan(&new, &owed)).contains(&ActionKind::ReloadNginx));
    owed.held = sockets(&old.files[NGINX].bytes);
    assert!(kinds(&plan(&new, &owed)).contains(&ActionKind::RestartNginx));
    assert!(super::owed(&owed).contains(&ActionKind::RestartNginx));
}

#[test]
fn a_new_role_is_supervisords_affair() {
    let plan = plan(&wish(SERVER), &after(&wish(PLAIN)));
    assert!(
        kinds(&plan).contains(&ActionKind::UpdateSupervisor { interrupted: false }),
        "{plan:?}"
    );
    assert!(
        !kinds(&plan).contains(&ActionKind::RestartHeadscale),
        "it is not there yet: {plan:?}"
    );
}

#[test]
fn what_an_operator_stopped_stays_stopped() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    let nginx = present.services.as_mut().unwrap().get_mut("nginx").unwrap();
    (nginx.state, nginx.pid) = (ServiceState::StoppedByOperator, None);
    let plan = plan(&wish(BACKEND), &present);
    assert_eq!(kinds(&plan), [ActionKind::UpdateListeners]);
    assert!(
        plan.notes.iter().any(|note| note.contains("stopped by hand")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn what_fell_down_is_started() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    present.services.as_mut().unwrap().get_mut("nginx").unwrap().state = ServiceState::Down;
    assert_eq!(
        kinds(&plan(&desired, &present)),
        [ActionKind::Start(Program::Nginx)]
    );
}

#[test]
fn what_is_owed_is_done_again() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    present.owed = true;
    let due = [
        ActionKind::UpdateSupervisor { interrupted: true },
        ActionKind::ReloadNginx,
    ];
    assert_eq!(kinds(&plan(&desired, &present)), due);
    assert_eq!(owed(&present), due, "what `status` says");
    present.owed = false;
    assert_eq!(owed(&present), []);
}

#[test]
fn an_edited_file_is_put_right() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    present
        .files
        .insert("nginx/nginx.conf".into(), b"events {}".to_vec());
    present.files.insert("nginx/extra.conf".into(), b"".to_vec());
    let plan = plan(&desired, &present);
    assert_eq!(kinds(&plan), [ActionKind::ReloadNginx]);
    assert_eq!(plan.files.len(), 2);
}

#[test]
fn another_mode_is_put_right_and_nobody_has_to_be_told() {
    let desired = wish(SERVER);
    let mut present = after(&desired);
    let modes = desired.files.iter().map(|(path, file)| (path.clone(), file.mode));
    present.modes = modes.collect();
    assert!(plan(&desired, &present).is_empty());
    for path in [NGINX, "headscale/headscale.yaml", EFFECTIVE] {
        present.modes.insert(path.to_owned(), 0o666);
    }
    let plan = plan(&desired, &present);
    assert_eq!((kinds(&plan).len(), plan.files.len()), (0, 3), "{plan:#?}");
    let said = printed(&plan);
    assert!(said.contains("nginx/nginx.conf: mode"), "{said}");
}

#[test]
fn headscale_is_left_alone_when_what_somebody_wrote_was_never_read() {
    let desired = wish(SERVER);
    let path = "headscale/headscale.yaml";
    let good = |present: &Present| {
        let files = present.files.iter();
        let its = files.filter(|(path, _)| Reader::of(path) == Reader::Headscale);
        Some(its.map(|(path, bytes)| (path.clone(), bytes.clone())).collect())
    };
    let mut present = after(&desired);
    let read = good(&present);
    present.files.insert(path.to_owned(), b"foreign: text\n".to_vec());
    // It may have been started since.
    assert_eq!(kinds(&plan(&desired, &present)), [ActionKind::RestartHeadscale]);
    present.headscale_read = good(&present);
    assert_eq!(kinds(&plan(&desired, &present)), [ActionKind::RestartHeadscale]);
    present.headscale_read = read;
    assert_eq!(kinds(&plan(&desired, &present)), []);
    // What is wanted is another thing at the same time.
    let other = wish(&format!("{SERVER}[vpn]\nprefix = \"100.65.0.0/16\"\n"));
    let told = kinds(&plan(&other, &present));
    assert!(told.contains(&ActionKind::RestartHeadscale), "{told:?}");
}

#[test]
fn the_way_back_from_a_new_role_does_not_ask_for_its_program() {
    let good = after(&wish(PLAIN)).files;
    for state in [ServiceState::Down, ServiceState::Up] {
        let mut failed = after(&wish(SERVER));
        failed
            .services
            .as_mut()
            .unwrap()
            .get_mut("headscale")
            .unwrap()
            .state = state;
        assert_eq!(
            kinds(&back(&failed, &good)),
            [
                ActionKind::UpdateListeners,
                ActionKind::UpdateSupervisor { interrupted: true },
                ActionKind::ReloadNginx
            ]
        );
    }
}

#[test]
fn causes_are_keys_with_their_lines() {
    let both = format!(
        "{BACKEND}{}",
        BACKEND
            .replace("\"db\"", "\"web\"\nserver_name = \"web.local\"")
            .replace("27017", "8081")
    );
    let moved = "[mesh]\nhttps_listen = \"0.0.0.0:8443\"\n";
    let tcp = format!("{BACKEND}protocol = \"tcp\"\n\nlisten = \"0.0.0.0:5432\"\n");
    let apps = "[[backends]]\nname = \"db\"\nupstream = \"127.0.0.1:27017\"\nallowed_apps = [\"aa00000000000000000000000000000000000001\"]\n";
    for (from, to, what, source, nginx, listeners) in [
        (
            PLAIN,
            BACKEND,
            "backend \"db\" was added",
            Some("vpc.toml:2"),
            true,
            true,
        ),
        (BACKEND, PLAIN, "backend \"db\" was removed", None, true, true),
        (
            BACKEND,
            &both,
            "backend \"web\" was added",
            Some("vpc.toml:5"),
            true,
            true,
        ),
        (
            PLAIN,
            moved,
            "mesh.https_listen changed",
            Some("vpc.toml:2"),
            true,
            false,
        ),
        (
            moved,
            PLAIN,
            "mesh.https_listen changed",
            Some("default"),
            true,
            false,
        ),
        (
            &tcp,
            &tcp.replace("5432", "5433"),
            "listen of backend \"db\" changed",
            Some("vpc.toml:6"),
            false,
            true,
        ),
        (
            PLAIN,
            FORWARD,
            "forward \"db\" was added",
            Some("vpc.toml:2"),
            false,
            true,
        ),
        (
            BACKEND,
            apps,
            "allowed_apps of backend \"db\" changed",
            Some("vpc.toml:4"),
            false,
            true,
        ),
    ] {
        let plan = explained(from, to, DOMAIN);
        let [cause] = &plan.causes[..] else {
            panic!("{from} to {to}: {:#?}", plan.causes)
        };
        assert_eq!((cause.what.as_str(), cause.source.as_deref()), (what, source));
        let of_nginx = cause.files.iter().any(|path| path == "nginx/nginx.conf");
        assert_eq!(
            (of_nginx, cause.listeners),
            (nginx, listeners),
            "{what}: {cause:#?}"
        );
        for action in &plan.actions {
            assert_eq!(action.reason, what, "{:?}", action.kind);
        }
    }
}

/// Two edits at once: each action names only what it is there for.
#[test]
fn each_action_names_its_own_cause() {
    let from = format!("{SERVER}{BACKEND}");
    let to = from.replace("27017", "27018") + "[vpn]\nprefix = \"100.65.0.0/16\"\n";
    let plan = explained(&from, &to, DOMAIN);
    let reason = |kind| {
        let action = plan.actions.iter().find(|action| action.kind == kind);
        action.map(|action| action.reason.as_str())
    };
    assert_eq!(
        reason(ActionKind::ReloadNginx),
        Some("upstream of backend \"db\" changed"),
        "{plan:#?}"
    );
    assert_eq!(reason(ActionKind::RestartHeadscale), Some("vpn.prefix changed"));
}

#[test]
fn a_fact_is_a_cause_as_well() {
    let plan = explained(SERVER, SERVER, "other.example.com:443");
    let [cause] = &plan.causes[..] else {
        panic!("{:#?}", plan.causes)
    };
    assert_eq!(cause.what, "gateway changed");
    // The server's URL goes with it.
    assert!(
        cause.breaks
            && cause
                .effect
                .as_deref()
                .is_some_and(|it| it.contains("register again")),
        "{cause:#?}"
    );
    let values = cause.values.as_deref().unwrap();
    assert!(
        values.contains("other.example.com") && values.contains("apps.example.com"),
        "{values}"
    );
    assert!(
        cause.files.iter().any(|path| path.starts_with("headscale/")),
        "{cause:#?}"
    );
}

#[test]
fn a_program_that_is_gone_was_found_nowhere() {
    let mut now = facts(&loaded(SERVER).spec, DOMAIN);
    now.programs.headscale = None;
    let text = printed(&explained_with(SERVER, SERVER, now));
    assert!(
        text.contains("programs.headscale changed: not installed (was "),
        "{text}"
    );
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
}

#[test]
fn a_file_that_is_not_in_its_place_yet_is_no_other_version() {
    let was = wish(PLAIN);
    let mut present = after(&was);
    let conf = present.files.get_mut("supervisor/supervisord.conf").unwrap();
    conf.extend(b"; another --config\n");
    let (loaded, now) = (loaded(PLAIN), facts(&loaded(PLAIN).spec, DOMAIN));
    let mut plan = plan(&was, &present);
    let before = Before {
        spec: Some(loaded.spec.clone()),
        facts: was.facts.clone(),
        drifted: Vec::new(),
    };
    let goal = After {
        spec: &loaded.spec,
        facts: &now,
        source: &|_| None,
        render: &|spec| Some(render(spec, &now)),
    };
    plan.find_causes(&was, &present, &before, &goal);
    let [cause] = &plan.causes[..] else {
        panic!("{:#?}", plan.causes)
    };
    assert!(cause.what.contains("with this --config"), "{cause:#?}");
}

#[test]
fn no_difference_has_no_cause() {
    assert_eq!(
        explained(BACKEND, BACKEND, DOMAIN),
        Plan {
            notes: explained(BACKEND, BACKEND, DOMAIN).notes,
            ..Plan::default()
        }
    );
}

const MARK: &str = "s3cr3t";

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

/// Edits as operators make them: what each costs those who use the machine, and whether that is marked.
#[test]
fn a_plan_says_what_an_edit_costs() {
    let app = |n: u8| format!("aa000000000000000000000000000000000000{n:02}");
    let server = format!(
        "role = \"server\"\nallowed_apps = [\"{}\", \"{}\"]\n",
        app(1),
        app(2)
    );
    let node = "role = \"node\"\n[node]\nname = \"db-1\"\ntype = \"mongodb\"\n";
    let both = server.replace("\"server\"", "\"server+node\"") + "[node]\nname = \"db-1\"\n";
    let with = |text: &str, more: &str| format!("{text}{more}");
    let restricted = format!("{BACKEND}allowed_apps = [\"{}\", \"{}\"]\n", app(1), app(2));
    let hosted = BACKEND.replace("\"db\"", "\"db\"\nserver_name = \"db.local\"");
    for (from, to, disturbs, said) in [
        (
            PLAIN.to_owned(),
            BACKEND.to_owned(),
            false,
            &[
                "backend \"db\" was added, vpc.toml:2",
                "nginx: reload",
                "nobody who is served now",
            ][..],
        ),
        (
            hosted.clone(),
            PLAIN.to_owned(),
            true,
            &[
                "! backend \"db\" was removed",
                "peers that ask for Host db.local get 421",
            ],
        ),
        (
            with(&hosted, &BACKEND.replace("\"db\"", "\"rest\"")),
            BACKEND.replace("\"db\"", "\"rest\""),
            true,
            &["Host db.local are answered by backend \"rest\""],
        ),
        (
            BACKEND.to_owned(),
            BACKEND.replace("27017", "27018"),
            false,
            &["new requests go there"],
        ),
        (
            BACKEND.to_owned(),
            restricted.clone(),
            true,
            &["only apps", "every other gets 403", "listeners: update in place"],
        ),
        (
            restricted.clone(),
            restricted.replace(&format!("\"{}\", ", app(1)), ""),
            true,
            &["app aa00000000000000000000000000000000000001: 403"],
        ),
        (
            restricted.clone(),
            restricted.replace(&app(2), &app(3)),
            true,
            &["app aa00000000000000000000000000000000000002: 403"],
        ),
        (
            restricted.clone(),
            BACKEND.to_owned(),
            false,
            &["every app may call this backend"],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nhttps_listen = \"0.0.0.0:8443\"\n".to_owned(),
            true,
            &[
                "peers are refused at 0.0.0.0:443",
                "mesh.https_listen changed: \"0.0.0.0:8443\" (was \"0.0.0.0:443\"), vpc.toml:2",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nhttp_listen = \"127.0.0.1:80\"\n".to_owned(),
            true,
            &[
                "! nginx: restart, because mesh.http_listen changed",
                "new connections are refused for a moment",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\nclient_listen = \"127.0.0.1:9091\"\n".to_owned(),
            true,
            &["refused at 127.0.0.1:8091", "listeners: update in place"],
        ),
        (
            server.clone(),
            with(&server, "[vpn]\nprefix = \"100.65.0.0/16\"\n"),
            true,
            &[
                "headscale: restart, because vpn.prefix changed",
                "nodes that have joined keep their addresses",
                "nobody can join",
            ],
        ),
        (
            server.clone(),
            with(&server, "[vpn]\nbase_domain = \"vpc.internal\"\n"),
            true,
            &[
                "<node>.vpc.internal",
                "names below dstack.internal are found no longer",
            ],
        ),
        (
            server.clone(),
            with(&server, "[server]\nurl = \"https://vpn.example.com\"\n"),
            true,
            &["nodes go on at the old URL as long as it answers"],
        ),
        (
            server.clone(),
            server.replace(&format!("\"{}\", ", app(1)), ""),
            true,
            &[
                "app aa00000000000000000000000000000000000001: 403 from the VPC API",
                "stay in the VPN",
            ],
        ),
        (
            PLAIN.to_owned(),
            server.clone(),
            false,
            &["Headscale and the VPC API begin to serve", "headscale is started"],
        ),
        (
            server.clone(),
            PLAIN.to_owned(),
            true,
            &["nobody can join the VPN", "headscale ends"],
        ),
        (
            both.clone(),
            server.clone(),
            true,
            &["this machine leaves the VPN", "tailscaled ends"],
        ),
        (
            node.to_owned(),
            node.replace("db-1", "db-2"),
            true,
            &["by its new name only"],
        ),
        (
            node.to_owned(),
            node.replace("mongodb", "redis"),
            true,
            &["discovered as redis, and as mongodb no longer"],
        ),
        (
            node.to_owned(),
            with(node, "tun = \"userspace\"\n"),
            true,
            &["tailscaled is restarted: connections through the VPN pause"],
        ),
        (
            PLAIN.to_owned(),
            "[mesh]\ndrain_timeout = \"5m\"\n".to_owned(),
            true,
            &[
                "dstack-vpc itself goes on",
                "! supervisord",
                "nginx is restarted: new connections are refused",
            ],
        ),
        (
            PLAIN.to_owned(),
            "[log]\nformat = \"json\"\n".to_owned(),
            false,
            &["from the next start of the daemon on"],
        ),
    ] {
        let plan = explained(&from, &to, DOMAIN);
        let text = printed(&plan);
        if std::env::var_os("SHOW").is_some() {
            println!("=== {from}\n--> {to}\n{text}\n");
        }
        // What differs in every change is no news.
        let mut added = text
            .lines()
            .filter(|line| line.starts_with("+") && line.contains("return 200 \""));
        assert!(added.all(|line| line.contains("(tag)")), "{text}");
        for words in said {
            assert!(text.contains(words), "not {words:?}:\n{text}");
        }
        assert_eq!(Report::from(&plan).disturbs, disturbs, "{text}");
        let marked = text
            .lines()
            .take_while(|line| !line.starts_with("---"))
            .any(|line| line.starts_with("! "));
        assert_eq!(marked, disturbs, "{text}");
    }
}

#[test]
fn a_plan_shows_secrets_as_changed_and_never_as_values() {
    let desired = wish(PLAIN);
    let mut present = after(&desired);
    let conf = present.files.get_mut("nginx/nginx.conf").unwrap();
    conf.extend(format!("proxy_set_header Authorization \"Bearer {MARK}\";\n").bytes());
    let path = "templates/supervisord.conf.tera";
    present.files.insert(
        path.to_owned(),
        format!("command=a --token={MARK}1\n").into_bytes(),
    );
    let mut desired = desired;
    let mut file = desired.files["nginx/nginx.conf"].clone();
    file.bytes = format!("command=a --token={MARK}2\n").into_bytes();
    desired.files.insert(path.to_owned(), file);
    let plan = plan(&desired, &present);
    assert_eq!(plan.files.len(), 2, "{plan:#?}");
    let text = printed(&plan);
    assert!(
        !text.contains(MARK)
            && !serde_json::to_string(&Report::from(&plan))
                .unwrap()
                .contains(MARK),
        "{text}"
    );
    assert!(
        text.contains("-command=a --token=(secret)\n+command=a --token=(another secret)"),
        "{text}"
    );
    assert!(text.contains("Authorization (secret)"), "{text}");
}
