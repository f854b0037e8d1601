//! Files of every kind: any key of `vpc.toml` with any value it may have, as far as they go together. All are accepted.
#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

/// Keys and their values, as TOML.
type Keys = BTreeMap<&'static str, String>;

/// What a `vpc.toml` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    /// By the whole name, such as `mesh.http_listen`.
    keys: Keys,
    /// By the backend's name.
    backends: BTreeMap<String, Keys>,
    /// By the forward's name.
    forwards: BTreeMap<String, Keys>,
}

/// The same few cases each time, or as many others as `PROPTEST_CASES` says.
pub fn cases(few: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let usual = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 4096,
        ..ProptestConfig::default()
    };
    match asked {
        true => usual,
        false => ProptestConfig {
            cases: few,
            rng_seed: RngSeed::Fixed(5),
            ..usual
        },
    }
}

pub fn file() -> impl Strategy<Value = File> {
    let keys = keys().into_iter();
    let keys = keys.map(|(key, value)| (Just(key), prop::option::weighted(0.3, value)));
    let backends = prop::collection::btree_map(select(NAMES), backend(), 0..4);
    let forwards = prop::collection::btree_map(select(NAMES), forward(), 0..3);
    (keys.collect::<Vec<_>>(), backends, forwards).prop_map(|(keys, backends, forwards)| {
        let keys = keys.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let named = |(name, keys): (&str, Keys)| (name.to_owned(), keys);
        File {
            keys: keys.collect(),
            backends: backends.into_iter().map(named).collect(),
            forwards: forwards.into_iter().map(named).collect(),
        }
        .agreeing()
    })
}

/// A file and what it becomes: another one, or, mostly, itself with few changes.
pub fn edit() -> impl Strategy<Value = (File, File)> {
    (file(), change()).prop_map(|(file, change)| (file.clone(), change.of(&file)))
}

/// What somebody does to a file.
#[derive(Debug, Clone)]
pub struct Change {
    other: File,
    /// The keys and backends that become those of the other file; none: all of them.
    taken: Vec<Index>,
}

pub fn change() -> impl Strategy<Value = Change> {
    let taken = prop_oneof![1 => Just(Vec::new()), 4 => prop::collection::vec(any::<Index>(), 1..5)];
    (file(), taken).prop_map(|(other, taken)| Change { other, taken })
}

impl Change {
    pub fn of(&self, file: &File) -> File {
        if self.taken.is_empty() {
            return self.other.clone();
        }
        let mut new = file.clone();
        // Most changes are about what there is in either.
        let keys: BTreeSet<_> = file.keys.keys().chain(self.other.keys.keys()).collect();
        let names: BTreeSet<_> = file.backends.keys().chain(self.other.backends.keys()).collect();
        let forwards: BTreeSet<_> = file.forwards.keys().chain(self.other.forwards.keys()).collect();
        for at in &self.taken {
            let at = at.index((keys.len() + names.len() + forwards.len()).max(1));
            let (name, forward) = (
                at.checked_sub(keys.len()),
                at.checked_sub(keys.len() + names.len()),
            );
            match (name, forward) {
                (None, _) => put(&mut new.keys, &self.other.keys, keys.iter().nth(at)),
                (Some(name), None) => put(&mut new.backends, &self.other.backends, names.iter().nth(name)),
                (_, Some(forward)) => put(
                    &mut new.forwards,
                    &self.other.forwards,
                    forwards.iter().nth(forward),
                ),
            }
        }
        new.agreeing()
    }
}

/// Takes over one entry, or that there is none.
fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, other: &BTreeMap<K, V>, key: Option<&&K>) {
    let Some(key) = key else { return };
    match other.get(key) {
        Some(value) => drop(map.insert((*key).clone(), value.clone())),
        None => drop(map.remove(*key)),
    }
}

impl File {
    pub fn text(&self) -> String {
        self.written(false)
    }

    /// The same in another order.
    pub fn backwards(&self) -> String {
        self.written(true)
    }

    /// What no reader accepts, but an editor may save on the way.
    pub fn broken(&self, how: &Index) -> String {
        let text = self.text();
        let ways = [
            "role = \n",
            "[mesh\n",
            "nonsense = true\n",
            "mesh.http_listen = \"somewhere\"\n",
            "allowed_apps = [\"nobody\"]\n",
            "identity = { lifetime = \"1h\", renew_before = \"2h\" }\n",
            "\"",
        ];
        format!("{}{text}", ways[how.index(ways.len())])
    }

    fn written(&self, backwards: bool) -> String {
        let lines = |keys: &Keys| {
            let lines = keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
            match backwards {
                true => lines.rev().collect::<String>(),
                false => lines.collect(),
            }
        };
        let mut text = lines(&self.keys);
        // Their order is that of nginx's blocks.
        for (table, entries) in [("backends", &self.backends), ("forwards", &self.forwards)] {
            for (name, keys) in entries {
                let name = format!("name = {name:?}\n");
                let (before, after) = if backwards { ("", &*name) } else { (&*name, "") };
                text += &format!("[[{table}]]\n{before}{}{after}", lines(keys));
            }
        }
        text
    }

    /// With what its keys ask of each other.
    fn agreeing(mut self) -> Self {
        let is = |keys: &Keys, key: &str, word: &str| keys.get(key).is_some_and(|it| it.contains(word));
        if is(&self.keys, "role", "server") {
            self.keys.entry("allowed_apps").or_insert("\"any\"".into());
        }
        if is(&self.keys, "role", "node") {
            let name = self.keys.entry("node.name").or_insert("\"n\"".into());
            if name == "\"\"" {
                *name = "\"m\"".into();
            }
        }
        if is(&self.keys, "registry.store", "etcd") {
            let endpoints = self.keys.entry("registry.endpoints").or_insert("[]".into());
            if endpoints == "[]" {
                *endpoints = "[\"http://10.0.0.1:2379\"]".into();
            }
        }
        if self
            .keys
            .get("status.listen")
            .is_some_and(|it| !it.contains("127.0.0.1") && !it.contains("::1"))
        {
            self.keys.insert("status.public", "true".into());
        }
        // No two listen at the same port.
        let tables = [(11_000, &mut self.backends), (12_000, &mut self.forwards)];
        for (first, entries) in tables {
            for (name, keys) in entries {
                let place = NAMES.iter().position(|it| it == name).unwrap_or_default();
                if let Some(listen) = keys.get_mut("listen")
                    && let Some((address, port)) = listen.trim_matches('"').rsplit_once(':')
                {
                    let port = port.parse::<usize>().unwrap_or_default() % 100;
                    *listen = format!("\"{address}:{}\"", first + 100 * place + port);
                }
            }
        }
        // Each Host has one backend, `_` as well.
        let mut others = self.backends.iter_mut().filter(|(_, keys)| {
            let host = keys.get("server_name");
            !keys.contains_key("protocol") && host.is_none_or(|host| host == "\"_\"")
        });
        others.next();
        others.for_each(|(name, keys)| drop(keys.insert("server_name", format!("\"{name}.local\""))));
        self
    }
}

const NAMES: &[&str] = &["default", "a", "db-1", "web", "orders", "0", "vpc-api"];

/// Every key, but those of backends and those that have one value only.
fn keys() -> Vec<(&'static str, BoxedStrategy<String>)> {
    vec![
        ("role", words(&["mesh", "server", "node", "server+node"])),
        ("allowed_apps", apps()),
        (
            "dstack.agent",
            prop_oneof![
                words(&["auto"]),
                text("unix:(/[a-z]{1,5}){1,3}"),
                text(path().prop_map(|path| format!("unix://{path}"))),
                text(upstream().prop_map(|at| format!("http://{at}"))),
            ]
            .boxed(),
        ),
        (
            "dstack.gateway_domain",
            prop_oneof![
                words(&["auto"]),
                text("[a-z]{1,9}\\.example\\.org(:[1-9][0-9]{0,3})?"),
                text(upstream().prop_map(|at| format!("fixed/{at}"))),
            ]
            .boxed(),
        ),
        ("dstack.host_shared_dir", text(path())),
        ("dstack.agent_timeout", duration()),
        ("mesh.client_listen", listen(10_000)),
        ("mesh.auth_listen", listen(10_100)),
        ("mesh.http_listen", listen(10_200)),
        ("mesh.https_listen", listen(10_300)),
        ("mesh.front", words(&["nginx", "builtin"])),
        ("mesh.connect_timeout", duration()),
        ("mesh.response_timeout", duration()),
        ("mesh.idle_timeout", duration()),
        ("mesh.drain_timeout", duration()),
        ("mesh.access_log", switch()),
        ("limits.header_timeout", duration()),
        ("limits.stall_timeout", duration()),
        ("limits.tcp_idle_timeout", duration()),
        ("limits.continue_timeout", duration()),
        ("limits.header_kib", number(16, 1024)),
        ("limits.headers", number(16, 4096)),
        ("limits.connections", number(16, 65_535)),
        ("limits.streams", number(1, 4096)),
        ("limits.targets", number(1, 65_535)),
        ("limits.idle_connections", number(0, 65_535)),
        ("limits.idle_per_target", number(0, 65_535)),
        (
            "server.url",
            prop_oneof![
                words(&["auto"]),
                text("https?://([a-z]{1,9}\\.example\\.com|10\\.1\\.2\\.[1-9]|\\[fd00::[1-9]\\])(:[1-9][0-9]{0,3})?/?"),
            ]
            .boxed(),
        ),
        ("server.headscale_listen", listen(10_400)),
        ("server.api_listen", listen(10_500)),
        ("server.join_key_lifetime", duration()),
        ("server.join_key_reusable", switch()),
        ("server.requests_per_hour", number(0, u32::MAX)),
        ("server.registrations_per_hour", number(0, u32::MAX)),
        ("vpn.prefix", (64..=127_u8).prop_map(|part| format!("\"100.{part}.0.0/16\"")).boxed()),
        ("vpn.base_domain", text("[a-z]{1,9}(\\.[a-z]{1,9}){0,2}\\.internal")),
        (
            "vpn.nameservers",
            list(text("9\\.9\\.9\\.[1-9]|2620:fe::[1-9]")),
        ),
        (
            "vpn.derp",
            prop_oneof![words(&["auto", "embedded", "public"]), text(path())].boxed(),
        ),
        (
            "vpn.derp_map_url",
            text("https?://[a-z]{1,9}\\.example\\.com/[a-z?=&%2f-]{0,9}"),
        ),
        ("node.name", text("[a-z]([a-z0-9-]{0,9}[a-z0-9])?")),
        ("node.type", text("([a-z0-9][a-zA-Z0-9_.-]{0,9})?")),
        ("node.server_app_id", prop_oneof![words(&["self"]), app()].boxed()),
        ("node.tun", words(&["auto", "device", "userspace"])),
        ("node.accept_dns", switch()),
        ("node.heartbeat", duration()),
        ("node.silence", duration()),
        ("registry.store", words(&["embedded", "etcd"])),
        ("registry.endpoints", list(text("http://10\\.0\\.0\\.[1-9]:2379"))),
        ("registry.silence", prop_oneof![words(&["0s"]), duration()].boxed()),
        ("registry.forget_after", prop_oneof![words(&["0s"]), duration()].boxed()),
        ("identity.lifetime", text("[1-5][1-9]d")),
        ("identity.renew_before", text("[1-9]d")),
        ("nginx.program", program()),
        ("nginx.user", text("[a-z_][a-z0-9_-]{0,9}")),
        ("nginx.workers", prop_oneof![words(&["auto"]), number(1, 1024)].boxed()),
        ("nginx.drain_timeout", duration()),
        ("supervisor.program", program()),
        ("supervisor.output", words(&["stdout", "files"])),
        ("headscale.program", program()),
        ("headscale.api_key_lifetime", duration()),
        ("tailscale.program", program()),
        ("tailscale.client", program()),
        ("tailscale.port", number(0, 65_535)),
        ("tailscale.device", text("[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")),
        ("tailscale.proxy_listen", prop_oneof![words(&[""]), listen(10_600)].boxed()),
        ("tailscale.modules_dir", prop_oneof![words(&[""]), text(path())].boxed()),
        ("reconcile.interval", text("[1-9][0-9]?[smhd]")),
        ("reconcile.debounce", duration()),
        ("reconcile.keep", number(1, 1000)),
        ("reconcile.probe_timeout", duration()),
        ("metrics.listen", prop_oneof![words(&[""]), listen(10_700)].boxed()),
        ("status.listen", prop_oneof![words(&[""]), listen(10_800)].boxed()),
        ("status.public", switch()),
        ("status.names", list(text("[a-z]{1,9}(\\.[a-z]{1,9})?"))),
        ("log.level", words(&["error", "warn", "info", "debug", "trace"])),
        ("log.format", words(&["auto", "text", "json"])),
    ]
}

fn backend() -> impl Strategy<Value = Keys> {
    let host = prop_oneof![
        1 => words(&["_"]),
        3 => text("[a-zA-Z]{1,9}(\\.[a-z0-9]{1,5}){1,3}"),
    ];
    let upstream = prop_oneof![
        text(upstream()),
        prop::collection::vec(text(upstream()), 1..4).prop_map(listed)
    ];
    let tcp = prop::option::weighted(0.3, listen(11_000));
    let parts = (prop::option::of(host), upstream, prop::option::of(apps()), tcp);
    parts.prop_map(|(host, upstream, apps, tcp)| {
        given([
            ("server_name", host.filter(|_| tcp.is_none())),
            ("protocol", tcp.as_ref().map(|_| "\"tcp\"".to_owned())),
            ("listen", tcp),
            ("upstream", Some(upstream)),
            ("allowed_apps", apps),
        ])
    })
}

fn forward() -> impl Strategy<Value = Keys> {
    let parts = (
        listen(12_000),
        app(),
        prop::option::of(number(1, 65_535)),
        prop::option::of(app()),
    );
    parts.prop_map(|(listen, app, port, instance)| {
        given([
            ("listen", Some(listen)),
            ("target_app", Some(app)),
            ("target_port", port),
            ("target_instance", instance),
        ])
    })
}

fn given<const N: usize>(keys: [(&'static str, Option<String>); N]) -> Keys {
    let given = keys.into_iter().filter_map(|(key, value)| Some((key, value?)));
    given.collect()
}

/// A string of TOML.
fn text(of: impl Strategy<Value = impl Into<String>> + 'static) -> BoxedStrategy<String> {
    of.prop_map(|text| toml::Value::from(text.into()).to_string())
        .boxed()
}

fn words(all: &'static [&'static str]) -> BoxedStrategy<String> {
    text(select(all))
}

fn list(item: BoxedStrategy<String>) -> BoxedStrategy<String> {
    prop::collection::btree_set(item, 0..4)
        .prop_map(|items| listed(items.into_iter().collect()))
        .boxed()
}

fn listed(items: Vec<String>) -> String {
    format!("[{}]", items.join(", "))
}

fn switch() -> BoxedStrategy<String> {
    any::<bool>().prop_map(|value| value.to_string()).boxed()
}

fn number(least: u32, most: u32) -> BoxedStrategy<String> {
    prop_oneof![least..=most, Just(least), Just(most)]
        .prop_map(|number| number.to_string())
        .boxed()
}

fn duration() -> BoxedStrategy<String> {
    text("[1-9][0-9]{0,2}(ms|s|m|h|d)")
}

fn app() -> BoxedStrategy<String> {
    text("[0-9a-fA-F]{40}")
}

fn apps() -> BoxedStrategy<String> {
    prop_oneof![words(&["any"]), list(app())].boxed()
}

/// An address with one of a hundred ports, so that two keys never meet.
fn listen(first: u16) -> BoxedStrategy<String> {
    let address = select(&["0.0.0.0", "127.0.0.1", "10.0.0.7", "[::]", "[::1]"]);
    text((address, first..first + 100).prop_map(|(address, port)| format!("{address}:{port}")))
}

/// Far from all that listens.
fn upstream() -> impl Strategy<Value = String> {
    let host = "10\\.0\\.0\\.[1-9]|127\\.0\\.0\\.1|\\[::1\\]|[a-zA-Z][a-z0-9]{0,5}(-[a-z]{1,3}){0,2}(\\.[a-z]{1,5}){0,2}";
    (host, 20_000..30_000_u16).prop_map(|(host, port)| format!("{host}:{port}"))
}

/// With what some format or other takes for more than a letter.
fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => "(/[a-z]{1,5}){1,3}",
        1 => "/[ '\"\\\\%;#$`{}()*?~|>@=,&!<:\\[\\]_./é☃\u{2028}-]{1,6}x",
        1 => "/\\PC{1,6}",
    ]
}

/// A name or a path.
fn program() -> BoxedStrategy<String> {
    text(prop_oneof!["[a-z]{1,9}".boxed(), path().boxed()])
}
