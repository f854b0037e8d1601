//! The comparisons themselves.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::common::http::{self, With, get};
use crate::common::machine::Machine;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, OTHER_APP, SERVER_APP};
use crate::compare::{Comparison, Line, Pace, Scene};
use crate::load::{Load, Sample};
use crate::peers::{Answers, Hop, Part, Peer, Program};
use crate::stage::{OURS, Stage};

/// Bodies, in bytes.
pub(crate) const SIZES: [usize; 3] = [1 << 10, 64 << 10, 10 << 20];

/// Only the hop: the server answers by itself.
pub(crate) async fn outbound(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let hops = stage.hops(stage.server.tls.addr()).await?;
    let scene = Scene {
        id: "outbound",
        title: "Outbound proxy alone",
        about: "wrk → hop → mutual TLS → a server that answers by itself.",
        peers: hops.peers(&[stage.server.program.part("server")]),
        loads: by_connections(pace),
        counter: None,
    };
    scene.run(pace)
}

/// From hop to backend, with our nginx and our auth service in all.
pub(crate) async fn chain(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let backend = Answers::start(&stage.files).await?;
    let server = stage.serving(backend.plain.addr()).await?;
    let hops = stage.hops(server.ports.https.addr()).await?;
    let behind = [
        Part::front("serving nginx", &server),
        Part::daemon("auth", &server),
        backend.program.part("backend"),
    ];
    let pace = Pace {
        connections: pace.aside().connections,
        ..pace
    };
    let scene = Scene {
        id: "chain",
        title: "Whole chain: hop, serving nginx, auth service, backend",
        about: "wrk → hop → mutual TLS → the nginx that we rendered, which asks our auth service → backend. Only the hop differs.",
        peers: hops.peers(&behind),
        loads: by_connections(pace),
        counter: None,
    };
    scene.run(pace)
}

/// Through the nginx at port 80, and not.
pub(crate) async fn entrance(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let pace = pace.aside();
    let machine = stage.calling(stage.server.tls.addr()).await?;
    let nginx = Hop::nginx(&stage.files, stage.server.tls.addr()).await?;
    let server = stage.server.program.part("server");
    let peer = |name, addr, hop, front| Peer {
        name,
        addr,
        parts: vec![hop, front, server.clone()],
    };
    let daemon = Part::daemon("hop", &machine);
    let scene = Scene {
        id: "entrance",
        title: "Through port 80",
        about: "wrk → the nginx that we rendered → proxy → mutual TLS → server, beside the same without that nginx. The server counts the connections made to it in a run.",
        peers: vec![
            peer(
                ENTRANCE,
                machine.ports.http.addr(),
                daemon.clone(),
                Part::front("port 80", &machine),
            ),
            peer(
                OURS,
                machine.ports.client.addr(),
                daemon,
                Part::new("port 80", Vec::new()),
            ),
            peer(
                "nginx",
                nginx.port.addr(),
                nginx.program.part("hop"),
                Part::new("port 80", Vec::new()),
            ),
        ],
        loads: by_connections(pace),
        counter: Some(&stage.server),
    };
    scene.run(pace)
}

pub(crate) const ENTRANCE: &str = "dstack-vpc through port 80";

/// The built-in front beside an nginx that asks nobody who calls.
pub(crate) async fn front(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let pace = pace.aside();
    let backend = Answers::start(&stage.files).await?;
    let ours = stage.serving_with("builtin", backend.plain.addr()).await?;
    let nginx = Hop::front(&stage.files, backend.plain.addr()).await?;
    let callers = [
        stage.calling(ours.ports.https.addr()).await?,
        stage.calling(nginx.port.addr()).await?,
    ];
    let peer = |name, caller: &Machine, front| Peer {
        name,
        addr: caller.ports.client.addr(),
        parts: vec![
            front,
            Part::daemon("hop", caller),
            backend.program.part("backend"),
        ],
    };
    let scene = Scene {
        id: "front",
        title: "Built-in front alone",
        about: "wrk → our hop → mutual TLS → front → backend. nginx lets in everybody with a certificate and asks nobody.",
        peers: vec![
            peer(OURS, &callers[0], Part::daemon("front", &ours)),
            peer("nginx", &callers[1], nginx.program.part("front")),
        ],
        loads: by_connections(pace),
        counter: None,
    };
    scene.run(pace)
}

/// From app to app with built-in fronts on both sides, beside nginx on both: ours of today, and as it was before.
pub(crate) async fn fronts(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let pace = pace.aside();
    let backend = Answers::start(&stage.files).await?;
    let mut peers = Vec::new();
    let mut machines = Vec::new();
    for (name, front) in [(OURS, "builtin"), ("nginx", "nginx")] {
        let server = stage.serving_with(front, backend.plain.addr()).await?;
        let client = stage.calling_through(front, server.ports.https.addr()).await?;
        peers.push(Peer {
            name,
            addr: client.ports.http.addr(),
            parts: vec![
                Part::whole("calling machine", &client),
                Part::whole("serving machine", &server),
                backend.program.part("backend"),
            ],
        });
        machines.push((client, server));
    }
    let server = stage.serving(backend.plain.addr()).await?;
    let (serving, entry) = unkept(&server).await?;
    let client = stage.calling(entry.https.addr()).await?;
    let (calling, exit) = unkept(&client).await?;
    peers.push(Peer {
        name: UNKEPT,
        addr: exit.http.addr(),
        parts: vec![
            Part::daemon("calling machine", &client).and(calling.part("")),
            Part::daemon("serving machine", &server).and(serving.part("")),
            backend.program.part("backend"),
        ],
    });
    let scene = Scene {
        id: "fronts",
        title: "Built-in fronts on both sides",
        about: "wrk → port 80 → mutual TLS → port 443 → backend, with `mesh.front = \"builtin\"` on both machines, beside the same with nginx: \
                as we render it, and the same file without what keeps connections. The predecessor ran nginx like that, with a connection \
                for each request to the proxy, for each question to the auth service and for each request to the backend. The targets come \
                from its figures, so beside it they say what was promised; beside today's nginx they say what the built-in front brings now.",
        peers,
        loads: by_connections(pace),
        counter: None,
    };
    let mut comparison = scene.run(pace)?;
    let (ours, nginx) = (0, 1);
    let is_missed = |line: &Line| line.ratio(ours, nginx, |s| s.requests) < 3.0;
    if let Some(line) = comparison.lines.iter().find(|line| is_missed(line)) {
        let whole = |s: &Sample| s.cpu[0] + s.cpu[1];
        let kernel = |s: &Sample| s.kernel[0] + s.kernel[1];
        let share = line.in_rounds(|of| kernel(of(ours)) / whole(of(nginx)));
        comparison.notes.push(format!(
            "Beside nginx as we render it today the targets are missed: that nginx was made to cost less than half of what it did. With {} \
             connections the kernel takes {:.1} of our {:.1} µs a request, which is {share:.2} of all that nginx takes, so a quarter would leave \
             next to nothing for TLS and HTTP on two machines.",
            line.name,
            line.of(ours, kernel),
            line.of(ours, whole),
        ));
    }
    Ok(comparison)
}

pub(crate) const UNKEPT: &str = "nginx that keeps nothing";

/// The auth service, asked as nginx asks it, beside an nginx that says yes to everything.
pub(crate) async fn auth(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let server = stage.serving(stage.server.plain.addr()).await?;
    let (yes, port) = yes().await?;
    let peer = |name, addr, part| Peer {
        name,
        addr,
        parts: vec![part],
    };
    let pace = pace.aside();
    let loads = pace.connections.iter().map(|connections| {
        let load = Load {
            path: "/auth".to_owned(),
            headers: subrequests(stage),
            ..Load::get(*connections)
        };
        (connections.to_string(), load)
    });
    let scene = Scene {
        id: "auth",
        title: "Auth service alone",
        about: "wrk → auth service, with the subrequests of our nginx for four certificates in turn. nginx has `return 200` in its place and looks at nothing.",
        peers: vec![
            peer(OURS, server.ports.auth.addr(), Part::daemon("auth", &server)),
            peer("nginx", port.addr(), yes.part("auth")),
        ],
        loads: loads.collect(),
        counter: None,
    };
    scene.run(pace)
}

/// The auth service where it works: behind our nginx, and an nginx that says yes in its place.
pub(crate) async fn auth_in_place(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let backend = Answers::start(&stage.files).await?;
    let server = stage.serving(backend.plain.addr()).await?;
    let (yes, yes_port) = yes().await?;
    let (copy, copy_port) = with_another_auth(&server, &yes_port).await?;
    let (to_ours, to_copy) = (
        Hop::nginx(&stage.files, server.ports.https.addr()).await?,
        Hop::nginx(&stage.files, copy_port.addr()).await?,
    );
    let peer = |name, hop: &Hop, auth, front| Peer {
        name,
        addr: hop.port.addr(),
        parts: vec![
            auth,
            front,
            hop.program.part("hop"),
            backend.program.part("backend"),
        ],
    };
    let pace = pace.aside();
    let scene = Scene {
        id: "auth in place",
        title: "Auth service in the whole chain, nginx as the hop",
        about: "The auth service where it works, and an nginx with `return 200` in its place.",
        peers: vec![
            peer(
                OURS,
                &to_ours,
                Part::daemon("auth", &server),
                Part::front("serving nginx", &server),
            ),
            peer("nginx", &to_copy, yes.part("auth"), copy.part("serving nginx")),
        ],
        loads: by_connections(pace),
        counter: None,
    };
    scene.run(pace)
}

/// Bodies of all sizes, both ways.
pub(crate) async fn bodies(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let hops = stage.hops(stage.server.tls.addr()).await?;
    let mut loads = Vec::new();
    for upload in [false, true] {
        for size in SIZES.into_iter().filter(|size| pace.full || *size == SIZES[2]) {
            let connections = if size == SIZES[2] { 4 } else { 16 };
            let load = Load {
                path: if upload {
                    "/upload".to_owned()
                } else {
                    format!("/files/{size}")
                },
                size,
                upload,
                ..Load::get(connections)
            };
            let way = if upload { "up" } else { "down" };
            let (number, unit) = if size < 1 << 20 {
                (size >> 10, "KiB")
            } else {
                (size >> 20, "MiB")
            };
            loads.push((format!("{number} {unit} {way}, {connections}"), load));
        }
    }
    let scene = Scene {
        id: "bodies",
        title: "Bodies",
        about: "Downloads are files of the server; uploads are read to their end before it answers.",
        peers: hops.peers(&[stage.server.program.part("server")]),
        loads,
        counter: None,
    };
    scene.run(Pace {
        run: Duration::from_secs(3),
        ..pace.aside()
    })
}

/// A server that closes after each answer, so that each request costs a connection of the hop.
pub(crate) async fn connections(stage: &Stage, pace: Pace) -> Result<Comparison> {
    let mut all: Option<Comparison> = None;
    for (name, port) in [
        ("resumed", &stage.server.resumed),
        ("full handshake", &stage.server.fresh),
    ] {
        let hops = stage.hops(port.addr()).await?;
        let scene = Scene {
            id: "connections",
            title: "A new TLS connection for each request, 16 at once",
            about: "The server closes after each answer, so that each request costs the hop a TLS connection. Requests a second are connections a second.",
            peers: hops.peers(&[stage.server.program.part("server")]),
            loads: vec![(name.to_owned(), Load::get(16))],
            counter: Some(&stage.server),
        };
        let mut one = scene.run(pace.aside())?;
        for peer in &one.peers {
            let resumed = how_many_resumed(peer).await?;
            one.notes.push(format!(
                "{}, {name}: {resumed} of {ASKED} sessions were resumed.",
                peer.name
            ));
        }
        match &mut all {
            None => all = Some(one),
            Some(all) => {
                all.lines.append(&mut one.lines);
                all.notes.append(&mut one.notes);
            }
        }
    }
    Ok(all.expect("two of them"))
}

const ASKED: usize = 50;

/// The server says it in the first byte of its answer.
async fn how_many_resumed(peer: &Peer) -> Result<usize> {
    let mut resumed = 0;
    for _ in 0..ASKED {
        let reply = http::send(peer.addr, get("/").to_app(SERVER_APP)).await;
        let reply = reply.map_err(anyhow::Error::from_boxed)?;
        resumed += usize::from(reply.body.starts_with(b"r"));
    }
    Ok(resumed)
}

/// 1,000 connections that are all busy, of processes that have done nothing else.
pub(crate) async fn crowd(stage: &Stage, pace: Pace) -> Result<(Comparison, Vec<u64>)> {
    let hops = stage.hops(stage.server.tls.addr()).await?;
    let peers = hops.peers(&[stage.server.program.part("server")]);
    let idle = peers
        .iter()
        .map(|peer| crate::shared::proc::resident(&peer.parts[0].pids))
        .collect();
    let scene = Scene {
        id: "crowd",
        title: "1,000 busy connections",
        about: "Of processes that have done nothing else before.",
        peers,
        loads: vec![("1000".to_owned(), Load::get(1000))],
        counter: None,
    };
    // A thousand handshakes take their time, and those that do not come to an end are lost with the run.
    let pace = Pace {
        warm_up: Duration::from_secs(10),
        run: Duration::from_secs(5),
        ..pace.aside()
    };
    Ok((scene.run(pace)?, idle))
}

fn by_connections(pace: Pace) -> Vec<(String, Load)> {
    let loads = pace.connections.iter();
    loads
        .map(|connections| (connections.to_string(), Load::get(*connections)))
        .collect()
}

/// nginx that lets everybody in.
async fn yes() -> Result<(Program, Port)> {
    let port = Port::reserve();
    let program = Program::nginx(include_str!("conf/yes.nginx"), &[("YES", port.to_string())]).await?;
    Ok((program, port))
}

/// What we rendered for `machine`, on other ports, asking `auth`.
async fn with_another_auth(machine: &Machine, auth: &Port) -> Result<(Program, Port)> {
    let (copy, ports) = copy(machine)?;
    let ours = machine.ports.auth.to_string();
    ensure!(copy.contains(&ours), "nginx.conf does not say {ours}");
    let copy = copy.replace(&ours, &auth.to_string());
    let program = Program::nginx(&copy, &[("HTTPS", ports.https.to_string())]).await?;
    Ok((program, ports.https))
}

/// What we rendered for `machine`, on other ports, without what makes it cheap: kept connections, sessions that are taken up
/// again, compiled patterns.
async fn unkept(machine: &Machine) -> Result<(Program, Copied)> {
    const CHEAP: [&str; 6] = [
        "pcre_jit ",
        "keepalive ",
        "ssl_session_cache ",
        // Without these two nginx speaks HTTP/1.0 to what is behind it, and says that the connection ends.
        "proxy_http_version ",
        "proxy_set_header Connection ",
        "proxy_set_header Upgrade ",
    ];
    let (mut copy, ports) = copy(machine)?;
    for directive in CHEAP {
        ensure!(copy.contains(directive), "nginx.conf does not say {directive}");
        let without = copy
            .lines()
            .filter(|line| !line.trim_start().starts_with(directive));
        copy = without.collect::<Vec<_>>().join("\n");
    }
    let values = [
        ("HTTP", ports.http.to_string()),
        ("HTTPS", ports.https.to_string()),
    ];
    Ok((Program::nginx(&copy, &values).await?, ports))
}

/// Where a copy of a front listens.
struct Copied {
    http: Port,
    https: Port,
}

/// What we rendered for `machine`, on other ports.
fn copy(machine: &Machine) -> Result<(String, Copied)> {
    let mut copy = fs::read_to_string(machine.state.current().join("nginx/nginx.conf"))?;
    let (http, https) = (Port::reserve(), Port::reserve());
    for (ours, other) in [(&machine.ports.http, &http), (&machine.ports.https, &https)] {
        ensure!(copy.contains(&ours.to_string()), "nginx.conf does not say {ours}");
        copy = copy.replace(&ours.to_string(), &other.to_string());
    }
    Ok((copy, Copied { http, https }))
}

/// The headers of our `auth_request`, for a few certificates that come again and again.
fn subrequests(stage: &Stage) -> Vec<Vec<(&'static str, String)>> {
    /// As nginx does in `$ssl_client_escaped_cert`.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    let apps = [CLIENT_APP, SERVER_APP, OTHER_APP, CLIENT_APP];
    let headers = apps.iter().map(|app| {
        let leaf = &stage.agent.issue(app).chain_pems[0];
        vec![
            ("Host", "vpc-auth".to_owned()),
            ("X-Client-Cert", utf8_percent_encode(leaf, ESCAPED).to_string()),
            ("X-Client-Verify", "SUCCESS".to_owned()),
            ("X-Dstack-Backend", "default".to_owned()),
        ]
    });
    headers.collect()
}
