//! What is made from the table of keys is current, and fits the examples.
//! `UPDATE_GOLDEN=1 cargo test --test spec_generated` writes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dstack_vpc::spec::{self, Role};
use serde_json::Value as Json;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn current(path: &str, made: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, made).unwrap();
    }
    let stands = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        stands,
        made,
        "{}: run UPDATE_GOLDEN=1 cargo test --test spec_generated",
        path.display()
    );
}

#[test]
fn the_reference_page_is_current() {
    current("docs/configuration.md", &spec::reference());
}

#[test]
fn the_page_of_metrics_is_current() {
    current("docs/metrics.md", &dstack_vpc::metrics::reference());
}

#[test]
fn the_schema_beside_the_examples_is_current() {
    current("examples/vpc.schema.json", &format!("{:#}\n", spec::schema()));
}

#[test]
fn the_schema_of_plans_is_current() {
    current(
        "docs/plan.schema.json",
        &format!("{:#}\n", dstack_vpc::plan::report_schema()),
    );
}

#[test]
fn the_schema_of_what_doctor_finds_is_current() {
    current(
        "docs/doctor.schema.json",
        &format!("{:#}\n", dstack_vpc::doctor::report_schema()),
    );
}

fn examples() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    found.sort();
    found
}

#[test]
fn every_example_loads_without_a_warning() {
    let examples = examples();
    assert!(examples.len() >= 7, "{examples:?}");
    for path in examples {
        let text = spec::read(&path).unwrap();
        assert!(
            text.text.starts_with("#:schema ./vpc.schema.json\n"),
            "{}",
            path.display()
        );
        let loaded =
            spec::load(Some(&text), &BTreeMap::new()).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    }
}

fn validator() -> jsonschema::Validator {
    let schema = spec::schema();
    assert!(
        jsonschema::draft7::meta::is_valid(&schema),
        "not a schema of draft 7"
    );
    jsonschema::draft7::new(&schema).unwrap()
}

fn as_json(text: &str) -> Json {
    toml::from_str(text).unwrap()
}

#[test]
fn the_schema_accepts_what_loads() {
    let validator = validator();
    let accepts = |name: &str, text: &str| {
        let errors: Vec<String> = validator
            .iter_errors(&as_json(text))
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}\n{text}");
    };
    for path in examples() {
        accepts(&path.display().to_string(), &fs::read_to_string(&path).unwrap());
    }
    for (word, role) in Role::WORDS {
        accepts(word, &spec::starter(Some(*role), None).unwrap());
    }
    // Every default and example, one by one.
    for section in spec::SECTIONS {
        for key in section.keys {
            let value = key.default.or(key.example).unwrap();
            let text = match (section.name, section.many) {
                ("", _) => format!("{} = {value}", key.name),
                (name, false) => format!("[{name}]\n{} = {value}", key.name),
                (name, true) => {
                    // With whatever else has to be given.
                    let needed = section.keys.iter().filter(|it| it.name != key.name);
                    let needed = needed.filter_map(|it| Some(format!("{} = {}\n", it.name, it.example?)));
                    format!("[[{name}]]\n{}{} = {value}", needed.collect::<String>(), key.name)
                }
            };
            accepts(&section.path(key), &text);
        }
    }
}

#[test]
fn the_schema_refuses_what_does_not_load() {
    let validator = validator();
    for bad in [
        "rol = \"mesh\"",
        "role = \"router\"",
        "version = 2",
        "allowed_apps = \"some\"",
        "allowed_apps = [\"aa\"]",
        "[mesh]\nhttp_listen = 80",
        "[mesh]\nhttp_listen = \"localhost:80\"",
        "[mesh]\nidle_timeout = \"15\"",
        "[[backends]]\nname = \"a\"",
        "[[backends]]\nupstream = []",
        "[backends]\nupstream = \"a:1\"",
        "[node]\nname = \"a.b\"",
        "[tailscale]\nport = 70000",
        "[registry]\nendpoints = [\"10.0.0.1:2379\"]",
    ] {
        assert!(!validator.is_valid(&as_json(bad)), "{bad}");
        let text = spec::ConfigText::new("vpc.toml", bad);
        assert!(spec::load(Some(&text), &BTreeMap::new()).is_err(), "{bad}");
    }
}

#[test]
fn every_key_is_described() {
    let schema = spec::schema();
    for section in spec::SECTIONS {
        assert!(!section.about().is_empty(), "[{}]", section.name);
        for key in section.keys {
            let path = section.path(key);
            assert!(key.about().ends_with('.'), "{path}");
            let table = match (section.name, section.many) {
                ("", _) => &schema,
                (name, false) => &schema["properties"][name],
                (name, true) => &schema["properties"][name]["items"],
            };
            assert_eq!(
                table["properties"][key.name]["description"],
                Json::from(key.about()),
                "{path}"
            );
        }
    }
}
