//! What holds for every configuration, good or bad.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dstack_vpc::spec::{self, AllowedApps, ConfigText, Key, SECTIONS, SectionInfo};
use proptest::prelude::*;

type Env = BTreeMap<String, String>;

/// Loads, and lets every message be written.
fn survives(text: &str, env: &Env) {
    let text = ConfigText::new("vpc.toml", text);
    let found = match spec::load(Some(&text), env) {
        Ok(loaded) => {
            assert!(!loaded.spec.values().is_empty());
            loaded.warnings
        }
        Err(problems) => {
            assert!(
                problems
                    .iter()
                    .any(|problem| problem.severity == spec::Severity::Error)
            );
            problems
        }
    };
    found.render(true);
    serde_json::to_string(&found).unwrap();
}

/// A key as it may be written, right or slightly wrong.
fn any_key() -> impl Strategy<Value = String> {
    let names: Vec<&'static str> = SECTIONS
        .iter()
        .flat_map(|s| s.keys.iter().map(|key| key.name))
        .collect();
    prop_oneof![4 => prop::sample::select(names).prop_map(str::to_owned), 1 => "[a-z_\"\\.]{0,12}"]
}

fn any_value() -> impl Strategy<Value = String> {
    let values: Vec<&'static str> = SECTIONS
        .iter()
        .flat_map(|s| s.keys.iter().filter_map(|key| key.default.or(key.example)))
        .collect();
    prop_oneof![
        prop::sample::select(values).prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
        "\\PC{0,20}",
        "\\PC{0,20}".prop_map(|text| toml::Value::from(text).to_string()),
        "[0-9a-z:/.@-]{0,24}".prop_map(|text| format!("\"{text}\"")),
        "[0-9a-z:/.@-]{0,24}".prop_map(|text| format!("[\"{text}\", 1]")),
        Just("{ a = 1 }".to_owned()),
        Just("".to_owned()),
    ]
}

fn any_line() -> impl Strategy<Value = String> {
    let headers: Vec<String> = SECTIONS
        .iter()
        .flat_map(|s| [format!("[{}]", s.name), format!("[[{}]]", s.name)])
        .collect();
    prop_oneof![
        3 => (any_key(), any_value()).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => prop::sample::select(headers),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(text) = ConfigText::from_bytes("vpc.toml".as_ref(), bytes) {
            survives(&text.text, &Env::new());
        }
    }

    #[test]
    fn no_file_brings_it_down(lines in prop::collection::vec(any_line(), 0..20)) {
        survives(&lines.join("\n"), &Env::new());
    }

    #[test]
    fn no_variable_brings_it_down(
        values in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 0..6),
        other in "VPC_[A-Z_0-9]{0,20}",
    ) {
        let mut names: Vec<String> = spec::ALIASES.iter().map(|alias| alias.name.to_owned()).collect();
        names.extend(SECTIONS.iter().flat_map(|s| s.keys.iter().map(|key| spec::variable_of(&s.path(key)))));
        names.push("VPC__BACKENDS".to_owned());
        names.push(other);
        let env: Env = values.into_iter().map(|(at, value)| (at.get(&names).clone(), value)).collect();
        survives("", &env);
    }
}

/// A value that is not the default, as TOML and as the text of a variable. Keys that share a type share a value.
fn another(key: &str) -> (&'static str, &'static str) {
    match key {
        "role" => ("\"server+node\"", "server+node"),
        "allowed_apps" => (
            "[\"aa00000000000000000000000000000000000001\", \"aa00000000000000000000000000000000000002\"]",
            "AA00000000000000000000000000000000000002,aa00000000000000000000000000000000000001",
        ),
        "dstack.agent" => ("\"unix:/run/other.sock\"", "unix:/run/other.sock"),
        "dstack.gateway_domain" => ("\"fixed/gw.example.com:9443\"", "fixed/gw.example.com:9443"),
        "dstack.host_shared_dir" => ("\"/shared\"", "/shared"),
        "server.url" => ("\"https://vpn.example.com\"", "https://vpn.example.com"),
        "vpn.prefix" => ("\"100.64.0.0/16\"", "100.64.0.0/16"),
        "vpn.base_domain" => ("\"vpc.internal\"", "vpc.internal"),
        "vpn.nameservers" => ("[\"9.9.9.9\", \"2620:fe::fe\"]", "9.9.9.9, 2620:fe::fe"),
        "vpn.derp_map_url" => (
            "\"https://derp.example.com/map.json\"",
            "https://derp.example.com/map.json",
        ),
        "vpn.derp" => ("\"/etc/derp.yaml\"", "/etc/derp.yaml"),
        "node.name" => ("\"db-1\"", "db-1"),
        "node.type" => ("\"mongodb\"", "mongodb"),
        "node.server_app_id" => (
            "\"aa00000000000000000000000000000000000003\"",
            "aa00000000000000000000000000000000000003",
        ),
        "node.tun" => ("\"userspace\"", "userspace"),
        "registry.store" => ("\"etcd\"", "etcd"),
        "registry.endpoints" => ("[\"http://10.0.0.1:2379\"]", "[\"http://10.0.0.1:2379\"]"),
        "nginx.user" => ("\"www\"", "www"),
        "nginx.workers" | "reconcile.keep" | "tailscale.port" => ("3", "3"),
        "supervisor.output" => ("\"files\"", "files"),
        "log.level" => ("\"debug\"", "debug"),
        "log.format" => ("\"json\"", "json"),
        "server.join_key_reusable" | "mesh.access_log" | "status.public" => ("true", "true"),
        "metrics.listen" | "status.listen" => ("\"127.0.0.1:4000\"", "127.0.0.1:4000"),
        "status.names" => ("[\"status.example.com\"]", "status.example.com"),
        "limits.header_kib" | "limits.headers" | "limits.streams" => ("50", "50"),
        "limits.connections" | "limits.targets" | "limits.idle_connections" | "limits.idle_per_target" => {
            ("50", "50")
        }
        "node.accept_dns" => ("false", "false"),
        "server.requests_per_hour" | "server.registrations_per_hour" => ("0", "0"),
        "tailscale.device" => ("\"vpc0\"", "vpc0"),
        "tailscale.client" | "tailscale.modules_dir" => ("\"/opt/tailscale\"", "/opt/tailscale"),
        "registry.silence" | "registry.forget_after" => ("\"0s\"", "0s"),
        key if key.ends_with(".program") => ("\"/opt/program\"", "/opt/program"),
        key if key.ends_with("_listen") => ("\"127.0.0.1:4000\"", "127.0.0.1:4000"),
        "identity.lifetime" => ("\"40d\"", "40d"),
        "identity.renew_before" => ("\"1d\"", "1d"),
        // The only values there are.
        "version" => ("1", "1"),
        "mesh.front" => ("\"nginx\"", "nginx"),
        _ => ("\"7s\"", "7s"),
    }
}

fn in_file(section: &SectionInfo, key: &Key, value: &str) -> String {
    match section.name {
        "" => format!("{} = {value}", key.name),
        name => format!("[{name}]\n{} = {value}", key.name),
    }
}

#[test]
fn every_key_means_the_same_in_the_file_and_in_the_environment() {
    // What a server that is a node has to say, unless the key at hand says it.
    let needed: Env = [
        ("VPC_ALLOWED_APPS", "any"),
        ("VPC_NODE_NAME", "n"),
        ("VPC__REGISTRY__ENDPOINTS", "http://e:1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for section in SECTIONS.iter().filter(|section| !section.many) {
        for key in section.keys {
            let path = section.path(key);
            let (toml, text) = another(&path);
            let own: Vec<&str> = spec::ALIASES
                .iter()
                .filter(|a| a.key == path)
                .map(|a| a.name)
                .collect();
            let mut env = needed.clone();
            env.retain(|name, _| !own.contains(&name.as_str()) && *name != spec::variable_of(&path));
            let file = ConfigText::new("vpc.toml", in_file(section, key, toml));
            let from_file =
                spec::load(Some(&file), &env).unwrap_or_else(|problems| panic!("{path}\n{problems}"));
            env.insert(spec::variable_of(&path), text.to_owned());
            let from_env = spec::load(None, &env).unwrap_or_else(|problems| panic!("{path}\n{problems}"));
            let differs = |a: &spec::Spec, b: &spec::Spec| {
                let (a, b) = (a.values(), b.values());
                a.into_iter()
                    .zip(b)
                    .filter(|(a, b)| a != b)
                    .map(|(a, _)| a.0)
                    .collect::<Vec<_>>()
            };
            let role: Vec<String> = differs(&from_file.spec, &from_env.spec);
            // Only `node.name` in the file does not make the machine a node.
            let expected: &[&str] = if path == "node.name" { &["role"] } else { &[] };
            assert!(role.is_empty() || role == expected, "{path}: {role:?}");
            assert_eq!(from_env.source(&path), spec::variable_of(&path));
            let written = ConfigText::new("effective", from_env.spec.to_toml());
            assert_eq!(
                spec::load(Some(&written), &Env::new()).unwrap().spec,
                from_env.spec,
                "{path}"
            );
            assert!(
                from_file.source(&path).starts_with("vpc.toml:"),
                "{path}: {}",
                from_file.source(&path)
            );
            env.remove(&spec::variable_of(&path));
            if !["version", "mesh.front"].contains(&path.as_str()) {
                let default = spec::Spec::default();
                assert!(
                    differs(&default, &from_file.spec).contains(&path),
                    "{path} has its default"
                );
            }
        }
    }
}

#[test]
fn the_environment_comes_before_the_file() {
    let file = ConfigText::new(
        "vpc.toml",
        "role = \"mesh\"\n[mesh]\nhttp_listen = \"0.0.0.0:81\"\n[[backends]]\nname = \"a\"\nserver_name = \"a.example\"\n\
         upstream = \"a:1\"\n[[backends]]\nname = \"rest\"\nupstream = \"b:1\"\n",
    );
    let env: Env = [
        ("VPC__MESH__HTTP_LISTEN", "0.0.0.0:82"),
        ("MESH_BACKEND", "c:1,d:1"),
        ("VPC_SERVER_ENABLED", "no"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let loaded = spec::load(Some(&file), &env).unwrap();
    assert_eq!(loaded.spec.mesh.http_listen.port(), 82);
    assert!(!loaded.spec.role.server);
    assert_eq!(loaded.source("backends[0].upstream"), "vpc.toml:7");
    assert_eq!(loaded.source("backends[1].upstream"), "MESH_BACKEND");
    assert_eq!(loaded.spec.backends[1].upstream.len(), 2);
}

#[test]
fn the_same_input_has_the_same_hash() {
    let hash = |text: &str, env: &[(&str, &str)]| {
        let env = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        spec::load(Some(&ConfigText::new("vpc.toml", text)), &env)
            .unwrap()
            .input_hash
    };
    let first = hash("version = 1", &[("PATH", "/bin")]);
    assert_eq!(
        first,
        hash("version = 1", &[("PATH", "/sbin"), ("VPC_NODE_TYPE", "")])
    );
    assert_ne!(first, hash("version = 1 ", &[]));
    assert_ne!(first, hash("version = 1", &[("VPC__LOG__LEVEL", "debug")]));
}

#[test]
fn long_lists_load_fast() {
    let ids: Vec<String> = (0..100_000).map(|n| format!("\"{n:040x}\"")).collect();
    let backends: String = (0..10_000)
        .map(|n| format!("[[backends]]\nname=\"b{n}\"\nserver_name=\"h{n}\"\nupstream=\"a:1\"\n"))
        .collect();
    let text = format!("allowed_apps = [{}]\n{backends}", ids.join(", "));
    let begun = Instant::now();
    let loaded = spec::load(Some(&ConfigText::new("vpc.toml", text)), &Env::new()).unwrap();
    let took = begun.elapsed();
    let AllowedApps::Only(apps) = &loaded.spec.allowed_apps else {
        panic!("a list")
    };
    assert_eq!((apps.len(), loaded.spec.backends.len()), (100_000, 10_000));
    // Unoptimised and on a busy machine; what grows with the square takes minutes.
    assert!(took < Duration::from_secs(20), "{took:?}");
    println!("loaded in {took:?}");
}

#[test]
fn junk_is_refused_fast() {
    let lines = |line: &dyn Fn(usize) -> String| (0..100_000).map(line).collect::<String>();
    for (name, junk) in [
        ("lines", lines(&|_| "junk junk\n".into())),
        ("one line", lines(&|_| "junk ".into())),
        ("brackets", format!("a = {}", "[".repeat(1 << 20))),
        ("keys", lines(&|n| format!("k{n} = {n}\n"))),
        (
            "items",
            format!("allowed_apps = [{}]", lines(&|_| "\"bad\",".into())),
        ),
    ] {
        let begun = Instant::now();
        survives(&junk, &Env::new());
        let took = begun.elapsed();
        // As above: what grows with the square would take minutes.
        assert!(took < Duration::from_secs(20), "{name}: {took:?}");
        println!("{name} refused in {took:?}");
    }
}
