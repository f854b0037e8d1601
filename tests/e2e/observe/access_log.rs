//! The access log: a line for each request, and no request that waits for it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::scrape::scrape;
use super::{Alone, DOWN, PRIVATE};
use crate::common::gateway::LocalGateway;
use crate::common::http::{With, get, post};
use crate::common::machine::Plan;
use crate::common::ports::Port;
use crate::common::process::Watchdog;
use crate::common::{CLIENT_APP, OTHER_APP, binary, poll, run};

const SECRET: &str = "token-of-somebody";

fn lines(alone: &Alone) -> Vec<Json> {
    lines_of(alone, "request")
}

fn lines_of(alone: &Alone, what: &str) -> Vec<Json> {
    let text = fs::read_to_string(alone.machine.dir.path().join("up.log")).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["message"] == what).collect()
}

/// Asserts that a line says this, field by field.
fn says(line: &Json, expected: &[(&str, Json)]) {
    for (field, value) in expected {
        assert_eq!(&line[field], value, "{field}: {line}");
    }
}

async fn line(alone: &Alone, id: &str) -> Json {
    let found = poll(Duration::from_secs(10), async || {
        let mut lines = lines(alone).into_iter().filter(|line| line["request_id"] == id);
        let found = lines.next();
        assert!(lines.next().is_none(), "two lines for {id}");
        found
    });
    found.await.unwrap_or_else(|| panic!("no line for {id}"))
}

#[test]
fn each_request_is_one_line_where_that_is_wanted() {
    run(async {
        // The built-in front would write one as well, see below.
        let alone = Alone::start(Plan::insist_on_nginx).await;
        let call = |id: &str| get("/quiet").to_app(CLIENT_APP).with("x-request-id", id);
        assert_eq!(alone.proxy(call("quiet-1")).await.status, 200);
        let on = |toml: String| toml.replace("[mesh]\n", "[mesh]\naccess_log = true\n");
        alone.machine.edit(on).await;

        let upload = post(&format!("/a/b?password={SECRET}"), "12345")
            .to_app(CLIENT_APP)
            .with("x-dstack-target-port", "8443")
            .with("authorization", SECRET)
            .with("x-request-id", "upload-1");
        let reply = alone.proxy(upload).await;
        let said = line(&alone, "upload-1").await;
        let expected = [
            ("level", Json::from("INFO")),
            ("app", CLIENT_APP.into()),
            ("port", 8443.into()),
            ("method", "POST".into()),
            ("path", "/a/b".into()),
            ("status", 200.into()),
            ("outcome", "2xx".into()),
            ("received_bytes", 5.into()),
            ("sent_bytes", reply.body.len().into()),
            ("instance", Json::Null),
        ];
        says(&said, &expected);
        assert!(
            said["duration_ms"].as_f64().is_some_and(|took| took > 0.0),
            "{said}"
        );
        let at = said["timestamp"].as_str().unwrap_or_default();
        assert!(at.parse::<jiff::Timestamp>().is_ok(), "{said}");

        for (request, id, status, outcome) in [
            (get("/x").to_app(OTHER_APP), "wrong-1", 502, "identity_mismatch"),
            (get("/x").to_app("?"), "bad-1", 400, "bad_target"),
            (
                get("/x").to_app(CLIENT_APP).with("host", PRIVATE),
                "private-1",
                403,
                "4xx",
            ),
            (get("/health"), "here-1", 200, "2xx"),
            // Of a length that nobody knows beforehand.
            (get("/trailers").to_app(CLIENT_APP), "chunked-1", 200, "2xx"),
        ] {
            assert_eq!(alone.proxy(request.with("x-request-id", id)).await.status, status);
            let said = line(&alone, id).await;
            assert_eq!(
                (&said["status"], &said["outcome"]),
                (&status.into(), &outcome.into()),
                "{said}"
            );
        }

        // A client that goes in the middle of its download.
        let mut client = TcpStream::connect(alone.machine.ports.client.addr())
            .await
            .expect("the proxy");
        let request = format!(
            "GET /hold HTTP/1.1\r\nhost: a\r\nx-dstack-target-app: {CLIENT_APP}\r\nx-request-id: gone-1\r\n\r\n"
        );
        client.write_all(request.as_bytes()).await.expect("a request");
        let mut head = [0; 1024];
        assert!(client.read(&mut head).await.is_ok_and(|read| read > 0));
        drop(client);
        alone.backend.release();
        let said = line(&alone, "gone-1").await;
        assert_eq!(
            (&said["status"], &said["outcome"]),
            (&200.into(), &"client_gone".into()),
            "{said}"
        );

        alone
            .machine
            .edit(|toml| toml.replace("access_log = true", "access_log = false"))
            .await;
        assert_eq!(alone.proxy(call("quiet-2")).await.status, 200);
        assert_eq!(lines(&alone).len(), 7, "{:#?}", lines(&alone));
        let text = fs::read_to_string(alone.machine.dir.path().join("up.log")).unwrap_or_default();
        assert!(!text.contains(SECRET) && !text.contains("quiet-"), "{text}");
    });
}

/// The one request of that id that came in, and was not sent by this machine.
async fn line_in(alone: &Alone, id: &str) -> Json {
    let found = poll(Duration::from_secs(10), async || {
        let all = lines(alone).into_iter();
        let mut lines = all.filter(|line| line["request_id"] == id && line["port"].is_null());
        let found = lines.next();
        assert!(lines.next().is_none(), "two lines for {id}");
        found
    });
    found.await.unwrap_or_else(|| panic!("no line for {id}"))
}

#[test]
fn what_comes_in_through_the_built_in_front_is_a_line_too() {
    run(async {
        let alone = Alone::start(|plan| {
            let toml = plan.toml.replace("front = \"nginx\"", "front = \"builtin\"");
            plan.toml = toml.replace("[mesh]\n", "[mesh]\naccess_log = true\n");
        })
        .await;
        let upload = post(&format!("/a/b?password={SECRET}"), "12345")
            .to_app(CLIENT_APP)
            .with("x-dstack-target-instance", OTHER_APP)
            .with("x-request-id", "in-1");
        let reply = alone.proxy(upload).await;
        let said = line_in(&alone, "in-1").await;
        let expected = [
            ("level", Json::from("INFO")),
            ("backend", "default".into()),
            ("app", CLIENT_APP.into()),
            ("instance", Json::Null),
            ("method", "POST".into()),
            ("path", "/a/b".into()),
            ("status", 200.into()),
            ("outcome", "2xx".into()),
            ("received_bytes", 5.into()),
            ("sent_bytes", reply.body.len().into()),
        ];
        says(&said, &expected);
        assert!(
            said["duration_ms"].as_f64().is_some_and(|took| took > 0.0),
            "{said}"
        );

        for (host, id, backend, status, outcome) in [
            (PRIVATE, "in-2", "private", 403, "not_allowed"),
            (DOWN, "in-3", "down", 502, "backend_unreachable"),
        ] {
            let call = get("/x").to_app(CLIENT_APP).with("host", host);
            assert_eq!(alone.proxy(call.with("x-request-id", id)).await.status, status);
            let expected = [
                ("backend", Json::from(backend)),
                ("app", CLIENT_APP.into()),
                ("status", status.into()),
                ("outcome", outcome.into()),
            ];
            says(&line_in(&alone, id).await, &expected);
        }
        let nobody = get("/x").with("x-request-id", "in-4");
        let refused = alone.machine.call_as_peer(None, nobody).await.expect("an answer");
        assert_eq!(refused.status, 401);
        let expected = [
            ("backend", Json::from("default")),
            ("app", Json::Null),
            ("status", 401.into()),
            ("outcome", "no_certificate".into()),
        ];
        says(&line_in(&alone, "in-4").await, &expected);
        // What is asked of the front itself is nobody's request.
        let health = get("/health").with("x-request-id", "in-5");
        let well = alone.machine.call_as_peer(None, health).await.expect("an answer");
        assert_eq!(well.status, 200);

        alone
            .machine
            .edit(|toml| toml.replace("access_log = true", "access_log = false"))
            .await;
        let quiet = get("/x").to_app(CLIENT_APP).with("x-request-id", "in-6");
        assert_eq!(alone.proxy(quiet).await.status, 200);
        let text = fs::read_to_string(alone.machine.dir.path().join("up.log")).unwrap_or_default();
        assert!(
            !text.contains(SECRET) && !text.contains("in-5") && !text.contains("in-6"),
            "{text}"
        );
    });
}

#[test]
fn a_session_of_tcp_is_a_line_and_counted_at_either_end() {
    run(async {
        let gateway = LocalGateway::start().await;
        let (backend, forward, closed) = (Port::reserve(), Port::reserve(), Port::reserve());
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = upstream.local_addr().expect("an address");
        // Of each caller it hears four bytes, and says two.
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = upstream.accept().await {
                let mut words = [0; 4];
                if stream.read_exact(&mut words).await.is_ok() {
                    let _ = stream.write_all(b"ok").await;
                }
            }
        });
        let alone = Alone::start(|plan| {
            plan.toml = plan.toml.replace("[mesh]\n", "[mesh]\naccess_log = true\n");
            let itself = format!("fixed/{}", plan.ports.https);
            plan.toml = plan.toml.replace(&itself, &gateway.domain());
            for (name, port, allowed) in [("db", &backend, CLIENT_APP), ("others", &closed, OTHER_APP)] {
                plan.toml += &format!(
                    "\n[[backends]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"{port}\"\nupstream = \"{at}\"\nallowed_apps = [\"{allowed}\"]\n"
                );
            }
            plan.toml += &format!(
                "\n[[forwards]]\nname = \"to-db\"\nlisten = \"{forward}\"\ntarget_app = \"{CLIENT_APP}\"\ntarget_port = {}\n",
                backend.number()
            );
        })
        .await;
        // The backend opens with the first certificate.
        let talk = poll(Duration::from_secs(30), async || {
            let mut client = TcpStream::connect(forward.addr()).await.ok()?;
            client.write_all(b"word").await.ok()?;
            client.shutdown().await.ok()?;
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.ok()?;
            (all == b"ok").then_some(())
        });
        talk.await.expect("a session");
        let stranger = TcpStream::connect(closed.addr()).await.expect("a port");
        drop(stranger);

        let session = async |listener: &str, outcome: &str| {
            let found = poll(Duration::from_secs(10), async || {
                let mut lines = lines_of(&alone, "session").into_iter();
                lines.find(|line| line["listener"] == listener && line["outcome"] == outcome)
            });
            found
                .await
                .unwrap_or_else(|| panic!("no line for {listener}: {:#?}", lines_of(&alone, "session")))
        };
        for (listener, name) in [("backends.listen", "db"), ("forwards.listen", "to-db")] {
            let said = session(listener, "ended").await;
            let expected = [
                ("level", Json::from("INFO")),
                ("name", name.into()),
                ("app", CLIENT_APP.into()),
                ("received_bytes", 4.into()),
                ("sent_bytes", 2.into()),
            ];
            says(&said, &expected);
            assert!(
                said["duration_ms"].as_f64().is_some_and(|took| took > 0.0),
                "{said}"
            );
        }
        let now = scrape(alone.metrics.addr()).await;
        for (kind, name) in [("backend", "db"), ("forward", "to-db")] {
            let session = format!("kind=\"{kind}\",name=\"{name}\"");
            for (series, value) in [
                (
                    format!("dstack_vpc_tcp_sessions_total{{{session},outcome=\"ended\"}}"),
                    1.0,
                ),
                (format!("dstack_vpc_tcp_open_sessions{{{session}}}"), 0.0),
                (
                    format!("dstack_vpc_tcp_bytes_total{{direction=\"received\",{session}}}"),
                    4.0,
                ),
                (
                    format!("dstack_vpc_tcp_bytes_total{{direction=\"sent\",{session}}}"),
                    2.0,
                ),
            ] {
                assert!(now.0.contains_key(&series), "{series}: {now:#?}");
                assert_eq!(now.of(&series), value, "{series}");
            }
        }
        server.abort();
    });
}

/// Requests in one go.
const BATCH: usize = 500;

#[test]
fn a_log_that_nobody_reads_stops_no_request() {
    run(async {
        let nowhere = "127.0.0.1:9".parse().expect("an address");
        let plan = Plan::new("/nonexistent".as_ref(), nowhere, &[]);
        let metrics = Port::reserve();
        let toml = plan.toml.replace("[mesh]\n", "[mesh]\naccess_log = true\n");
        let config = plan.dir.path().join("vpc.toml");
        fs::write(&config, toml + &format!("\n[metrics]\nlisten = \"{metrics}\"\n")).expect("vpc.toml");
        // Nobody reads this pipe, which holds 64 KiB.
        let mut daemon = Command::new(binary())
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(plan.dir.path().join("state"))
            .arg("run")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon");
        let _watchdog = Watchdog::over(daemon.id());
        let addr = plan.ports.client.addr();
        let mut client = poll(Duration::from_secs(30), async || {
            TcpStream::connect(addr).await.ok()
        })
        .await
        .expect("the proxy listens");
        let sent = 30 * BATCH;
        let request = format!(
            "GET /health HTTP/1.1\r\nhost: a\r\nx-request-id: {}\r\n\r\n",
            "i".repeat(128)
        );
        for batch in 0..sent / BATCH {
            let exchange = async {
                client.write_all(request.repeat(BATCH).as_bytes()).await?;
                let (mut answers, mut buffer) = (Vec::new(), [0; 65536]);
                while answers.windows(6).filter(|bytes| bytes == b"\r\n\r\nOK").count() < BATCH {
                    let read = client.read(&mut buffer).await?;
                    assert!(read > 0, "the connection ended");
                    answers.extend_from_slice(&buffer[..read]);
                }
                Ok::<_, std::io::Error>(())
            };
            let done = tokio::time::timeout(Duration::from_secs(30), exchange).await;
            assert!(matches!(done, Ok(Ok(()))), "batch {batch}: {done:?}");
        }
        let now = scrape(metrics.addr()).await;
        let series = "dstack_vpc_mesh_requests_total{outcome=\"2xx\",target=\"self\"}";
        assert_eq!(now.of(series), sent as f64);
        // What fits into the queue and into the pipe is less than half of it.
        let dropped = now.of("dstack_vpc_log_dropped_lines_total{log=\"access\"}");
        assert!((sent as f64 / 2.0..sent as f64).contains(&dropped), "{dropped}");

        // It also ends, although what it still has to say finds no reader.
        let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our own child");
        let ended = poll(Duration::from_secs(20), async || daemon.try_wait().ok().flatten()).await;
        let _ = daemon.kill();
        let _ = daemon.wait();
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    });
}
