//! The access log: a line for each request, and no request that waits for it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scrape::scrape;
use super::{Alone, PRIVATE};
use crate::common::http::{With, get, post};
use crate::common::machine::Plan;
use crate::common::ports::Port;
use crate::common::process::Watchdog;
use crate::common::{CLIENT_APP, OTHER_APP, binary, poll, run};

const SECRET: &str = "token-of-somebody";

fn lines(alone: &Alone) -> Vec<Json> {
    let text = fs::read_to_string(alone.machine.dir.path().join("up.log")).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["message"] == "request").collect()
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
        let alone = Alone::start(|_| {}).await;
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
        for (field, value) in [
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
        ] {
            assert_eq!(said[field], value, "{field}: {said}");
        }
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
