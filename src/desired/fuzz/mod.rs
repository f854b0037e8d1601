//! From what a user writes to what the programs read.

mod readers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};

use self::readers::{Directive, ini, nginx, words};
use super::{Desired, Launch, Program, Templates, desired, server_url};
use crate::facts::{Facts, assume};
use crate::paths::StateDir;
use crate::plan::{Present, plan};
use crate::spec::{
    AllowedApps, ChildOutput, ConfigText, Derp, Front, LogFormat, Problems, Severity, Spec, Tun, load,
};

/// `data` is `vpc.toml`, after a line `=== env` variables, and after a line `=== facts` what `render` is told to assume
/// of the machine (and where its `state_dir` and this `exe` are). Whatever is accepted reads back: by ourselves as the
/// same spec, and by nginx, supervisord and Headscale as the values that it holds, where they belong, and nothing else.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (text, facts) = text.split_once("\n=== facts\n").unwrap_or((&text, ""));
    let (text, env) = text.split_once("\n=== env\n").unwrap_or((text, ""));
    let (env, mut facts) = (pairs(env), pairs(facts));
    let file = ConfigText::new("vpc.toml", text);
    let loaded = match load(Some(&file), &env.into_iter().collect()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            assert!(problems.iter().any(|it| it.severity == Severity::Error));
            return told(&problems);
        }
    };
    told(&loaded.warnings);
    let spec = &loaded.spec;
    let effective = ConfigText::new("effective", spec.to_toml());
    match load(Some(&effective), &BTreeMap::new()) {
        Ok(again) => assert_eq!(again.spec, *spec, "{}", effective.text),
        Err(problems) => panic!("{problems}\n{}", effective.text),
    }

    let mut path = |name: &str, usual: &str| {
        let at = facts.iter().position(|(key, _)| key == name);
        at.map_or(usual.to_owned(), |at| format!("/{}", facts.remove(at).1))
    };
    let state = StateDir::new(path("state_dir", "/var/lib/dstack-vpc"));
    let launch = Launch {
        exe: path("exe", "/usr/local/bin/dstack-vpc").into(),
        config: None,
    };
    if let Ok(mut facts) = assume(&facts, spec, &state) {
        let programs = &mut facts.programs;
        for (program, place) in [
            (&mut programs.nginx, &spec.nginx.program),
            (&mut programs.headscale, &spec.headscale.program),
            (&mut programs.tailscaled, &spec.tailscale.program),
        ] {
            if let Some(fact) = program.as_mut().filter(|_| place.is_absolute()) {
                fact.value.path.clone_from(place);
            }
        }
        rendered(spec, &facts, &state, &launch);
    }
}

fn pairs(lines: &str) -> Vec<(String, String)> {
    let pairs = lines
        .split('\n')
        .take(100)
        .filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Problems quote what was written. A terminal obeys none of it.
fn told(problems: &Problems) {
    let words = problems.render(false);
    let bad = words.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(bad, None, "{words:?}");
    serde_json::to_string(problems).unwrap();
}

fn rendered(spec: &Spec, facts: &Facts, state: &StateDir, launch: &Launch) {
    let render = || desired(spec, facts, state, launch, &TEMPLATES);
    let desired = match render() {
        Ok(desired) => desired,
        Err(error) => {
            let words = error.to_string();
            return assert!(!words.contains(char::is_control), "{words:?}");
        }
    };
    assert_eq!(render().unwrap(), desired, "the same input gives the same");
    let text = |path: &str| {
        desired
            .files
            .get(path)
            .map(|file| str::from_utf8(&file.bytes).unwrap())
    };
    match (spec.mesh.front, text("nginx/nginx.conf")) {
        (Front::Nginx, Some(conf)) => nginx_reads(conf, spec, facts, state, &desired),
        (front, conf) => assert_eq!((front, conf), (Front::Builtin, None)),
    }
    let conf = text("supervisor/supervisord.conf").unwrap();
    supervisord_reads(conf, spec, facts, state, launch, &desired);
    if let Some(yaml) = text("headscale/headscale.yaml") {
        headscale_reads(yaml, spec, facts, state);
    }
    let plan = plan(&desired, &Present::default());
    assert_eq!(plan.files.len(), desired.files.len());
}

fn nginx_reads(conf: &str, spec: &Spec, facts: &Facts, state: &StateDir, desired: &Desired) {
    let read = nginx(conf).unwrap_or_else(|| panic!("not nginx's: {conf}"));
    for directive in Directive::all(&read) {
        assert!(DIRECTIVES.contains(&directive.name), "{}: {conf}", directive.name);
    }
    let http = Directive::the_only(&read, "http");
    nginx_reads_numbers(&read, spec);
    let user = read.iter().find(|it| it.name == "user").map(|it| &it.args[0]);
    match &spec.nginx.user {
        Some(_) if !facts.host.root => assert_eq!(user, None),
        Some(name) => assert_eq!(user, Some(name)),
        None => {}
    }
    let servers = |name: &str, expected: Vec<String>| {
        let upstream = http
            .block
            .iter()
            .find(|it| it.name == "upstream" && it.args == [name]);
        let upstream = upstream.unwrap_or_else(|| panic!("no upstream {name}: {conf}"));
        let read: Vec<_> = upstream.named("server").map(|it| it.args.clone()).collect();
        assert_eq!(read, expected.into_iter().map(|it| vec![it]).collect::<Vec<_>>());
    };
    servers("vpc_client", vec![spec.mesh.client_listen.to_string()]);
    servers("vpc_auth", vec![spec.mesh.auth_listen.to_string()]);
    let mut hosts = BTreeSet::new();
    for backend in super::nginx::http_backends(spec) {
        let expected = || backend.upstream.iter().map(ToString::to_string).collect();
        servers(&format!("backend_{}", backend.name), expected());
        servers(&format!("backend_{}_grpc", backend.name), expected());
        let host = backend
            .server_name
            .as_ref()
            .map_or("_".to_owned(), ToString::to_string);
        hosts.insert((host, Some(backend.name.to_string())));
    }
    if spec.role.server {
        servers("vpc_api", vec![spec.server.api_listen.to_string()]);
        hosts.insert(("vpc-server".to_owned(), Some("vpc-server".to_owned())));
    }
    let upstreams = super::nginx::http_backends(spec).count() + usize::from(spec.role.server);
    assert_eq!(http.named("upstream").count(), 2 + 2 * upstreams);
    if !hosts.iter().any(|(host, _)| host == "_") {
        hosts.insert(("_".to_owned(), None));
    }

    // The first serves local apps, the others peers.
    let mut blocks = http.named("server");
    let local = blocks.next().unwrap();
    assert_eq!(
        Directive::the_only(&local.block, "listen").args[0],
        spec.mesh.http_listen.to_string()
    );
    let root = local
        .named("location")
        .flat_map(|it| it.named("location"))
        .flat_map(|it| it.named("root"))
        .next()
        .unwrap();
    assert_eq!(root.args, [state.root().to_str().unwrap()]);
    let mut found = BTreeSet::new();
    for server in blocks {
        assert_eq!(
            Directive::the_only(&server.block, "listen").args[0],
            spec.mesh.https_listen.to_string()
        );
        let name = &Directive::the_only(&server.block, "server_name").args;
        let auth = server
            .named("location")
            .find(|it| it.args == ["=", "/.dstack-vpc/auth"])
            .unwrap();
        let backend = auth
            .named("proxy_set_header")
            .find(|it| it.args[0] == "X-Dstack-Backend");
        assert!(found.insert((name.join(" "), backend.map(|it| it.args[1].clone()))));
        let pages: Vec<_> = server.named("location").filter(|it| it.args == ["/"]).collect();
        assert!(pages.len() == 1 && pages[0].named("auth_request").count() == 1);
    }
    assert_eq!(found, hosts);
    // Who may call which backend is not in the file, but goes along with it.
    for backend in &spec.backends {
        let allowed = desired.listeners.mesh.backends.get(&backend.name);
        assert_eq!(allowed, Some(&backend.allowed_apps));
    }
    assert!(spec.role.server || desired.listeners.mesh.backends.len() == spec.backends.len());
    assert!(
        desired
            .listeners
            .api
            .as_ref()
            .map_or(&AllowedApps::Any, |api| &api.allowed_apps)
            == &spec.allowed_apps
            || !spec.role.server
    );
}

/// Where there are no strings.
fn nginx_reads_numbers(read: &[Directive], spec: &Spec) {
    let http = Directive::the_only(read, "http");
    let rounded = |time: Duration| format!("{}s", time.as_millis().div_ceil(1000).max(1));
    let workers = match spec.nginx.workers {
        0 => "auto".to_owned(),
        some => some.to_string(),
    };
    let stall = rounded(spec.limits.stall_timeout);
    let buffers = format!("{}k", spec.limits.header_kib / 4);
    for (block, name, expected) in [
        (read, "worker_processes", &[workers][..]),
        (
            read,
            "worker_shutdown_timeout",
            &[rounded(spec.nginx.drain_timeout)],
        ),
        (
            &http.block,
            "client_header_timeout",
            &[rounded(spec.limits.header_timeout)],
        ),
        (&http.block, "client_body_timeout", std::slice::from_ref(&stall)),
        (&http.block, "proxy_read_timeout", std::slice::from_ref(&stall)),
        (
            &http.block,
            "large_client_header_buffers",
            &["4".to_owned(), buffers],
        ),
        (
            &http.block,
            "http2_max_concurrent_streams",
            &[spec.limits.streams.to_string()],
        ),
    ] {
        assert_eq!(Directive::the_only(block, name).args, expected, "{name}");
    }
}

fn supervisord_reads(
    conf: &str,
    spec: &Spec,
    facts: &Facts,
    state: &StateDir,
    launch: &Launch,
    desired: &Desired,
) {
    let read = ini(conf).unwrap_or_else(|| panic!("not supervisord's: {conf}"));
    let root = state.root().to_str().unwrap();
    assert_eq!(read["supervisord"]["directory"], root);
    assert_eq!(
        read["unix_http_server"]["file"],
        state.supervisor_socket().to_str().unwrap()
    );
    let daemon = [launch.exe.to_str().unwrap(), "--state-dir", root, "run"].map(str::to_owned);
    let mut programs = BTreeMap::from([(Program::Daemon.name(), daemon.to_vec())]);
    programs.extend(
        desired
            .programs
            .iter()
            .map(|(program, command)| (program.name(), command.argv.clone())),
    );
    assert_eq!(read.len(), 4 + programs.len(), "{conf}");
    for (name, argv) in programs {
        let program = &read[&format!("program:{name}")];
        assert_eq!(words(&program["command"]).as_ref(), Some(&argv), "{conf}");
        assert!(program.len() <= 15 && !program.contains_key("environment"));
        let log = match spec.supervisor.output {
            ChildOutput::Stdout => "/dev/fd/1".to_owned(),
            // Which supervisord expands once more.
            ChildOutput::Files => format!("{}/{name}.out.log", state.log().display()).replace('%', "%%"),
        };
        assert_eq!(program["stdout_logfile"], log);
        let patience = Duration::from_secs(program["stopwaitsecs"].parse().unwrap());
        assert!(patience > spec.mesh.drain_timeout || ["headscale", "tailscaled"].contains(&name));
    }
    let argv = |program| desired.programs.get(&program).map(|command| &command.argv[..]);
    for (program, place) in [
        (Program::Nginx, &spec.nginx.program),
        (Program::Headscale, &spec.headscale.program),
    ] {
        if let Some(argv) = argv(program).filter(|_| place.is_absolute()) {
            assert_eq!(argv[0], place.to_str().unwrap());
        }
    }
    if let Some(argv) = argv(Program::Tailscaled) {
        let tailscale = &spec.tailscale;
        let device = spec.node.tun == Tun::Device || (spec.node.tun == Tun::Auto && facts.host.tun);
        let tun = if device {
            tailscale.device.as_str()
        } else {
            "userspace-networking"
        };
        let mut expected = vec![format!("--tun={tun}"), format!("--port={}", tailscale.port)];
        if let Some(addr) = tailscale.proxy_listen.filter(|_| !device) {
            expected.extend([
                format!("--socks5-server={addr}"),
                format!("--outbound-http-proxy-listen={addr}"),
            ]);
        }
        if tailscale.program.is_absolute() {
            expected.push(tailscale.program.to_str().unwrap().to_owned());
        }
        assert!(
            expected.iter().all(|word| argv.contains(word)),
            "{argv:?}: {expected:?}"
        );
    }
}

fn headscale_reads(yaml: &str, spec: &Spec, facts: &Facts, state: &StateDir) {
    let read: Value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let names: Vec<_> = read.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 18, "{names:?}");
    assert_eq!(read["server_url"], server_url(spec, facts).unwrap());
    assert_eq!(read["listen_addr"], spec.server.headscale_listen.to_string());
    assert_eq!(read["prefixes"]["v4"], spec.vpn.prefix.to_string());
    assert_eq!(read["dns"]["base_domain"], spec.vpn.base_domain.as_str());
    let nameservers: Vec<_> = spec.vpn.nameservers.iter().map(ToString::to_string).collect();
    assert_eq!(read["dns"]["nameservers"]["global"], json!(nameservers));
    let format = if spec.log.format == LogFormat::Json {
        "json"
    } else {
        "text"
    };
    assert_eq!(read["log"]["format"], format);
    let embedded = matches!(spec.vpn.derp, Derp::Auto | Derp::Embedded);
    assert_eq!(read["derp"]["server"]["enabled"], embedded);
    assert_eq!(read["derp"]["urls"], json!([]));
    let paths = match &spec.vpn.derp {
        Derp::File(path) => json!([path]),
        _ => json!([]),
    };
    assert_eq!(read["derp"]["paths"], paths);
    let database = state.headscale().join("db.sqlite");
    assert_eq!(read["database"]["sqlite"]["path"], json!(database));
}

static TEMPLATES: LazyLock<Templates> = LazyLock::new(Templates::builtin);

/// Every directive of the template.
static DIRECTIVES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut names = BTreeSet::new();
    let state = StateDir::new("/s");
    let text = "role = \"server\"\nallowed_apps = \"any\"\n[server]\nurl = \"https://v\"\n[[backends]]\nupstream = [\"a:1\", \"b:1\"]\n";
    let with_backend = load(Some(&ConfigText::new("", text)), &BTreeMap::new())
        .unwrap()
        .spec;
    for spec in [with_backend, Spec::default()] {
        for version in ["1.18.0", "1.29.0"] {
            let assumed = [("nginx".to_owned(), version.to_owned())];
            let facts = assume(&assumed, &spec, &state).unwrap();
            let launch = Launch {
                exe: "/e".into(),
                config: None,
            };
            let desired = desired(&spec, &facts, &state, &launch, &TEMPLATES).unwrap();
            let conf = String::from_utf8(desired.files["nginx/nginx.conf"].bytes.clone()).unwrap();
            let read = nginx(&conf).unwrap();
            names.extend(Directive::all(&read).map(|it| it.name.clone()));
        }
    }
    names
});
