//! Strings that mean something to one format or another, in every place where a string can stand. Each is either
//! refused, or read back exactly by the program that the file is for.

mod rendered;
mod specs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dstack_vpc::agent::dev::pki::Pki;
use dstack_vpc::desired::{Desired, Launch, Reader, RenderError, Templates, check_command, desired};
use dstack_vpc::facts::Facts;
use dstack_vpc::names::Host;
use dstack_vpc::paths::StateDir;
use dstack_vpc::spec::*;
use proptest::prelude::*;
use rendered::*;

const HOSTILE: &[&str] = &[
    " ",
    "  ",
    "'",
    "''",
    "\"",
    "\\",
    "\\\\",
    "\\\"",
    "\\n",
    "\\x41",
    "%",
    "%%",
    "%d",
    "%(here)s",
    "%(ENV_PATH)s",
    ";",
    "; daemon on; ",
    " ;",
    " ; x",
    "#",
    " # x",
    "$",
    "$host",
    "${PATH}",
    "$(id)",
    "`id`",
    "{",
    "}",
    "}\"};{",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{# x #}",
    "*",
    "?",
    "~",
    "[x]",
    "]\n[program:x]\ncommand=id",
    "\nuser root;",
    "\r",
    "\r\nx: y",
    "\t",
    "\u{b}",
    "\u{1b}[31m",
    "\u{7f}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{200b}",
    "\u{feff}",
    "é",
    "☃",
    "😀",
    ": ",
    " - ",
    "&a",
    "*a",
    "!t",
    "|",
    ">",
    "@",
    "=",
    ",",
    "<xml/>",
    "]]>",
    "true",
    "0x1",
];

/// Everything that takes a string, below one folder with the hostile name.
fn render_in(dir: &Path, launch: &Launch, server: bool) -> (StateDir, Facts, Result<Desired, RenderError>) {
    let state = StateDir::new(dir.join("state"));
    let mut spec = mesh();
    spec.role = Role { server, node: true };
    spec.node.name = Some("n".parse().unwrap());
    spec.supervisor.output = ChildOutput::Files;
    spec.vpn.derp = Derp::File(dir.join("derp.yaml"));
    let mut facts = facts(&state);
    let programs = &mut facts.programs;
    programs.nginx.as_mut().unwrap().value.path = program("nginx");
    programs.headscale.as_mut().unwrap().value.path = program("headscale");
    programs.tailscaled.as_mut().unwrap().value.path = dir.join("tailscaled");
    let result = desired(&spec, &facts, &state, launch, &Templates::builtin());
    (state, facts, result)
}

/// What no quoting can express, for the strictest of the formats.
fn unwritable(s: &str) -> bool {
    let comment = s
        .as_bytes()
        .windows(2)
        .any(|w| w[0] == b' ' && b";#".contains(&w[1]));
    comment || s.contains('$') || s.chars().any(char::is_control)
}

fn run(argv: &[impl AsRef<OsStr>]) -> Output {
    // The C locale, as in a minimal image.
    Command::new(&argv[0])
        .args(&argv[1..])
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}

fn succeed(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
}

/// supervisord's own parser and word splitting, as JSON.
fn supervisor_reads(conf: &Path) -> serde_json::Value {
    let script = "
import json, shlex, sys
from supervisor.options import ServerOptions
o = ServerOptions()
o.realize(['-n', '-c', sys.argv[1]])
programs = {p.name: {'argv': shlex.split(p.command), 'stdout': p.stdout_logfile, 'stderr': p.stderr_logfile}
            for g in o.process_group_configs for p in g.process_configs}
print(json.dumps({'programs': programs, 'socket': o.server_configs[0]['file'], 'pidfile': o.pidfile,
                  'logfile': o.logfile, 'directory': o.directory, 'childlogdir': o.childlogdir}))
";
    let output = run(&[
        "/usr/bin/python3".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
        conf.as_os_str(),
    ]);
    succeed(&output, &fs::read_to_string(conf).unwrap());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn launch_in(dir: &Path) -> Launch {
    Launch {
        exe: dir.join("dstack-vpc"),
        config: Some(dir.join("vpc.toml")),
    }
}

fn daemon_argv(launch: &Launch, state: &StateDir) -> Vec<PathBuf> {
    vec![
        launch.exe.clone(),
        "--config".into(),
        launch.config.clone().unwrap(),
        "--state-dir".into(),
        state.root().into(),
        "run".into(),
    ]
}

#[test]
fn every_string_is_refused_or_read_back_by_its_consumer() {
    let pki = Pki::new().unwrap();
    let (mut written, mut refused) = (0, 0);
    for hostile in HOSTILE {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join(format!("a{hostile}b"));
        fs::create_dir_all(&dir).unwrap();
        let launch = launch_in(&dir);
        // Headscale makes a `file:` URI of its database's path without quoting it.
        let server = !hostile.contains(['%', '?', '#']);
        if !server {
            let error = render_in(&dir, &launch, true).2.unwrap_err();
            assert!(
                matches!(error, RenderError::Unquotable { .. }),
                "{hostile:?}: {error}"
            );
        }
        let (state, facts, result) = render_in(&dir, &launch, server);
        let desired = match result {
            Ok(desired) => desired,
            Err(error) => {
                assert!(
                    matches!(error, RenderError::Unquotable { .. }),
                    "{hostile:?}: {error}"
                );
                assert!(unwritable(hostile), "{hostile:?}: {error}");
                assert_eq!(error.to_string().lines().count(), 1);
                refused += 1;
                continue;
            }
        };
        assert!(!unwritable(hostile), "{hostile:?} was written");
        written += 1;
        for folder in desired.folders.keys() {
            fs::create_dir_all(folder).unwrap();
        }
        let generation = dir.join("generation");
        write(&desired, &generation);

        // nginx opens the certificate in the named folder, and makes its pid file in the other.
        identity(&pki, app(1), &state.identity().join("000001"));
        let work = dir.join("work");
        fs::create_dir(&work).unwrap();
        let check = check_command(Reader::Nginx, &facts.programs, &generation, &work)
            .unwrap()
            .unwrap();
        succeed(&run(&check.command.argv), hostile);
        assert!(work.join("nginx.pid").exists(), "{hostile:?}");
        fs::remove_dir_all(state.identity()).unwrap();
        assert!(
            !run(&check.command.argv).status.success(),
            "{hostile:?}: another certificate was read"
        );

        if server {
            // Headscale makes its key and its database where the file says.
            let conf = generation.join("headscale/headscale.yaml");
            let headscale = program("headscale");
            let argv = [
                headscale.as_os_str(),
                "configtest".as_ref(),
                "--config".as_ref(),
                conf.as_os_str(),
            ];
            succeed(&run(&argv), hostile);
            for name in ["db.sqlite", "noise_private.key"] {
                assert!(state.headscale().join(name).exists(), "{hostile:?}: {name}");
            }
        }

        let read = supervisor_reads(&generation.join("supervisor/supervisord.conf"));
        assert_eq!(read["socket"], state.supervisor_socket().to_str().unwrap());
        assert_eq!(read["directory"], state.root().to_str().unwrap());
        assert_eq!(read["childlogdir"], state.log().to_str().unwrap());
        assert_eq!(
            read["pidfile"],
            state.run().join("supervisord.pid").to_str().unwrap()
        );
        assert_eq!(
            read["logfile"],
            state.log().join("supervisord.log").to_str().unwrap()
        );
        let programs = read["programs"].as_object().unwrap();
        assert_eq!(programs.len(), desired.programs.len() + 1, "{hostile:?}");
        assert_eq!(
            programs["dstack-vpc"]["argv"],
            serde_json::json!(daemon_argv(&launch, &state))
        );
        for (program, command) in &desired.programs {
            let read = &programs[program.name()];
            assert_eq!(read["argv"], serde_json::json!(command.argv), "{hostile:?}");
            let log = state.log().join(format!("{}.err.log", program.name()));
            assert_eq!(read["stderr"], log.to_str().unwrap());
        }
    }
    assert!(
        written >= 40 && refused >= 12,
        "{written} written, {refused} refused"
    );
}

/// Words of a command can hold more than a bare value of supervisord's can.
#[test]
fn every_word_of_a_command_is_refused_or_read_back() {
    let scratch = tempfile::tempdir().unwrap();
    for hostile in HOSTILE {
        let launch = launch_in(Path::new(&format!("/a{hostile}b")));
        let (state, _, result) = render_in(scratch.path(), &launch, true);
        for folder in [state.run(), state.log()] {
            fs::create_dir_all(folder).unwrap();
        }
        match result {
            Err(error) => assert!(hostile.chars().any(char::is_control), "{hostile:?}: {error}"),
            Ok(desired) => {
                assert!(!hostile.chars().any(char::is_control), "{hostile:?} was written");
                let generation = scratch.path().join("generation");
                write(&desired, &generation);
                let read = supervisor_reads(&generation.join("supervisor/supervisord.conf"));
                let expected = serde_json::json!(daemon_argv(&launch, &state));
                assert_eq!(read["programs"]["dstack-vpc"]["argv"], expected);
            }
        }
    }
}

/// nginx says the user's name as it read it when there is no such user.
#[test]
fn the_workers_user_cannot_add_a_directive() {
    let scratch = tempfile::tempdir().unwrap();
    let state = StateDir::new(scratch.path());
    identity(&Pki::new().unwrap(), app(1), &state.identity().join("000001"));
    for hostile in HOSTILE {
        let (mut spec, mut facts) = (mesh(), facts(&state));
        spec.nginx.user = Some(format!("a{hostile}b"));
        facts.host.root = true;
        facts.programs.nginx.as_mut().unwrap().value.path = program("nginx");
        let Ok(desired) = render(&spec, &facts, &state) else {
            assert!(
                hostile.contains('$') || hostile.chars().any(char::is_control),
                "{hostile:?}"
            );
            continue;
        };
        let generation = scratch.path().join("generation");
        write(&desired, &generation);
        let check = check_command(Reader::Nginx, &facts.programs, &generation, scratch.path())
            .unwrap()
            .unwrap();
        let said = run(&check.command.argv).stderr;
        let said = String::from_utf8_lossy(&said);
        assert!(
            said.contains(&format!("getpwnam(\"a{hostile}b\") failed")),
            "{hostile:?}: {said}"
        );
    }
}

/// What nginx looks for on this machine when it reads its file is there.
fn at_home(mut spec: Spec) -> Spec {
    for listen in [&mut spec.mesh.http_listen, &mut spec.mesh.https_listen] {
        if !listen.ip().is_loopback() && !listen.ip().is_unspecified() {
            listen.set_ip([127, 0, 0, 1].into());
        }
    }
    let hosts = spec
        .backends
        .iter_mut()
        .flat_map(|backend| backend.upstream.iter_mut());
    for upstream in hosts.filter(|upstream| matches!(upstream.host, Host::Name(_))) {
        upstream.host = Host::Ip([127, 0, 0, 1].into());
    }
    spec
}

proptest! {
    #![proptest_config(specs::cases(16))]

    /// Without a word of complaint.
    #[test]
    fn any_settings_are_read_by_nginx_and_supervisord_themselves(file in specs::file()) {
        let spec = load(Some(&ConfigText::new("vpc.toml", file.text())), &BTreeMap::new()).unwrap().spec;
        let spec = at_home(spec);
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDir::new(scratch.path());
        identity(&Pki::new().unwrap(), app(1), &state.identity().join("000001"));
        let mut facts = facts(&state);
        facts.programs.nginx.as_mut().unwrap().value.path = program("nginx");
        if spec.tailscale.program.is_absolute() {
            facts.programs.tailscaled.as_mut().unwrap().value.path.clone_from(&spec.tailscale.program);
        }
        let desired = render(&spec, &facts, &state).unwrap();
        for folder in desired.folders.keys() {
            fs::create_dir_all(folder).unwrap();
        }
        let generation = scratch.path().join("generation");
        write(&desired, &generation);

        if spec.mesh.front == Front::Nginx {
            let check = check_command(Reader::Nginx, &facts.programs, &generation, scratch.path()).unwrap().unwrap();
            let output = run(&check.command.argv);
            succeed(&output, &fs::read_to_string(generation.join("nginx/nginx.conf")).unwrap());
            prop_assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }

        let read = supervisor_reads(&generation.join("supervisor/supervisord.conf"));
        let programs = read["programs"].as_object().unwrap();
        prop_assert_eq!(programs.len(), desired.programs.len() + 1);
        for (program, command) in &desired.programs {
            prop_assert_eq!(&programs[program.name()]["argv"], &serde_json::json!(command.argv));
        }
        prop_assert_eq!(&programs["dstack-vpc"]["argv"], &serde_json::json!(daemon_argv(&launch(), &state)));
    }
}

#[test]
fn a_path_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let path = PathBuf::from(OsStr::from_bytes(b"/tmp/\xff"));
    let (_, _, result) = render_in(&path, &launch(), true);
    let error = result.unwrap_err();
    assert!(matches!(error, RenderError::NotUtf8 { .. }));
    assert!(error.to_string().contains("\\xFF"), "{error}");
}
