//! Headscale reads its files once, at its start: it is started anew for what means something else to it, and only then.

use super::*;

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
