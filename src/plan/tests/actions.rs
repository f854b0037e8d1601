//! The smallest set of steps from one state to another.

use super::*;

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
    assert!(kinds(&plan).contains(&ActionKind::UpdateSupervisor), "{plan:?}");
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
    let due = [ActionKind::UpdateSupervisor, ActionKind::ReloadNginx];
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
                ActionKind::UpdateSupervisor,
                ActionKind::ReloadNginx
            ]
        );
    }
}
