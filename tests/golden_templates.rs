//! Template overrides, the tag, and the size of what is rendered.

mod rendered;

use std::fs;
use std::time::{Duration, Instant};

use dstack_vpc::agent::dev::pki::Pki;
use dstack_vpc::desired::{Reader, RenderError, Templates, check_command, desired};
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::{ChildOutput, ServerUrl};
use rendered::*;

/// What overriding one template with `text` gives for that file.
fn overridden(name: &str, text: &str) -> Result<String, RenderError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), text).unwrap();
    let templates = Templates::with_overrides(dir.path())?;
    let state = StateDir::new("/var/lib/a \"b\"");
    let mut spec = mesh();
    spec.role.server = true;
    // Nothing is left out: a value that is not there cannot be looked at.
    spec.supervisor.output = ChildOutput::Files;
    let mut facts = facts(&state);
    facts.host.root = true;
    let desired = desired(&spec, &facts, &state, &launch(), &templates)?;
    let file = desired
        .files
        .iter()
        .find(|(path, _)| path.ends_with(name.trim_end_matches(".tera")));
    Ok(String::from_utf8(file.unwrap().1.bytes.clone()).unwrap())
}

#[test]
fn an_override_gets_the_same_values_with_the_same_quoting() {
    let nginx = overridden(
        "nginx.conf.tera",
        "root {{ state_root }}; {{ servers | length }}; # {{ tag }}",
    )
    .unwrap();
    assert!(nginx.starts_with(r#"root "/var/lib/a \"b\""; 2; # ""#), "{nginx}");
    let headscale = overridden("headscale.yaml.tera", "path: {{ data }}").unwrap();
    assert_eq!(headscale, r#"path: "/var/lib/a \"b\"/headscale""#);
    let supervisord = overridden(
        "supervisord.conf.tera",
        "{{ programs[0].argv | last }} {{ root }}",
    )
    .unwrap();
    assert_eq!(supervisord, "run true");
}

#[test]
fn the_readme_names_every_value() {
    let readme = include_str!("../templates/README.md");
    for name in ["nginx.conf.tera", "headscale.yaml.tera", "supervisord.conf.tera"] {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}`")))
            .unwrap();
        let dump = overridden(name, "{{ __tera_context | safe }}").unwrap();
        let values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&dump).unwrap();
        for (value, content) in values {
            assert!(row.contains(&format!("`{value}`")), "{name}: {value}");
            let first = content.get(0).unwrap_or(&content);
            for field in first.as_object().into_iter().flat_map(|fields| fields.keys()) {
                let named =
                    row.contains(&format!("`{field}`")) || row.contains(&format!("`{value}.{field}`"));
                assert!(named, "{name}: {value}.{field}");
            }
        }
    }
}

#[test]
fn a_bad_override_is_named_with_its_line() {
    for (text, line, word) in [
        ("a\nb {{ state_rot }}", 2, "state_rot"),
        ("a\n\n{% if %}", 3, ""),
        (
            "{% for s in servers %}\n{{ s.nothing }}\n{% endfor %}",
            2,
            "nothing",
        ),
    ] {
        let error = overridden("nginx.conf.tera", text).unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with(&format!("template nginx.conf.tera, line {line}: ")),
            "{said}"
        );
        assert!(said.contains(word), "{said}");
    }
    let unquotable = overridden("nginx.conf.tera", "{{ state_root ~ \"$x\" }}").unwrap_err();
    assert!(
        matches!(unquotable, RenderError::Unquotable { .. }),
        "{unquotable}"
    );
    assert!(unquotable.to_string().contains("$x"), "{unquotable}");
}

#[test]
fn only_known_names_override_and_a_missing_folder_overrides_nothing() {
    let unknown = overridden("ngnix.conf.tera", "").unwrap_err();
    assert!(matches!(unknown, RenderError::UnknownTemplate { .. }));
    assert!(unknown.to_string().contains("nginx.conf.tera"), "{unknown}");

    let dir = tempfile::tempdir().unwrap();
    Templates::with_overrides(&dir.path().join("none")).unwrap();
    fs::create_dir(dir.path().join("nginx.conf.tera")).unwrap();
    let unreadable = Templates::with_overrides(dir.path()).unwrap_err();
    assert!(
        matches!(unreadable, RenderError::Unreadable { .. }),
        "{unreadable}"
    );
}

#[test]
fn the_tag_follows_nginx_conf_and_nothing_else() {
    let state = StateDir::new("/var/lib/dstack-vpc");
    let facts = facts(&state);
    let mut spec = mesh();
    spec.role.server = true;
    let first = render(&spec, &facts, &state).unwrap();
    assert_eq!(first, render(&spec, &facts, &state).unwrap());

    spec.server.url = ServerUrl::Is("https://other.example".parse().unwrap());
    let other_headscale = render(&spec, &facts, &state).unwrap();
    assert_ne!(first.files, other_headscale.files);
    assert_eq!(first.tag, other_headscale.tag);

    spec.backends[0] = backend("default", "_", &["127.0.0.1:1"]);
    let other_nginx = render(&spec, &facts, &state).unwrap();
    assert_ne!(first.tag, other_nginx.tag);
    let conf = String::from_utf8(other_nginx.files["nginx/nginx.conf"].bytes.clone()).unwrap();
    assert_eq!(
        conf.matches(&format!("return 200 \"{}\";", other_nginx.tag))
            .count(),
        3
    );
}

#[test]
fn ten_thousand_backends_take_ten_times_as_long_as_a_thousand() {
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::new(scratch.path());
    let facts = facts(&state);
    let time = |count: u32| {
        let mut spec = mesh();
        spec.backends = (0..count)
            .map(|i| backend(&format!("b{i}"), &format!("b{i}.internal"), &["127.0.0.1:1"]))
            .collect();
        let start = Instant::now();
        let desired = render(&spec, &facts, &state).unwrap();
        (start.elapsed(), desired)
    };
    let (thousand, desired) = time(1_000);
    let (ten_thousand, _) = time(10_000);
    // Quadratic would be a hundred times as long; the rest is room for a busy machine.
    let limit = thousand * 40 + Duration::from_secs(1);
    assert!(
        ten_thousand < limit,
        "{thousand:?} for 1,000, {ten_thousand:?} for 10,000"
    );

    identity(&Pki::new().unwrap(), app(1), &state.identity().join("000001"));
    write(&desired, scratch.path());
    let mut programs = facts.programs.clone();
    programs.nginx.as_mut().unwrap().value.path = program("nginx");
    let check = check_command(Reader::Nginx, &programs, scratch.path(), scratch.path())
        .unwrap()
        .unwrap();
    let argv = check.command.argv;
    let start = Instant::now();
    let output = std::process::Command::new(&argv[0])
        .args(&argv[1..])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!(
        "render 1,000: {thousand:?}, 10,000: {ten_thousand:?}; nginx -t on 1,000: {:?}",
        start.elapsed()
    );
}
