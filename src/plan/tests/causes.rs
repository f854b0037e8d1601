//! What an action is there for: the key, with its line, or the fact.

use super::*;

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
