//! The numbers, after calls that ended in every way.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;

use super::scrape::{OPEN_METRICS, Samples, page, scrape};
use super::{Alone, PRIVATE};
use crate::common::http::{self, With, get, post, request};
use crate::common::machine::has_nginx;
use crate::common::ports::Port;
use crate::common::{CLIENT_APP, OTHER_APP, poll, run};

fn requests(target: &str, outcome: &str) -> String {
    format!("dstack_vpc_mesh_requests_total{{outcome=\"{outcome}\",target=\"{target}\"}}")
}

#[test]
fn what_happens_is_counted_exactly() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let metrics = alone.metrics.addr();
        let before = scrape(metrics).await;
        assert_eq!(before.sum("dstack_vpc_mesh_requests_total"), 0.0, "{before:?}");

        for _ in 0..5 {
            assert_eq!(alone.proxy(get("/x").to_app(CLIENT_APP)).await.status, 200);
        }
        let upload = post("/x", "u".repeat(100_000)).to_app(CLIENT_APP);
        assert_eq!(alone.proxy(upload).await.status, 200);
        let download = get("/download/200000").to_app(CLIENT_APP);
        assert_eq!(alone.proxy(download).await.body.len(), 200_000);
        for (status, times) in [(404, 2), (503, 1), (302, 3)] {
            for _ in 0..times {
                let call = get(&format!("/status/{status}")).to_app(CLIENT_APP);
                assert_eq!(alone.proxy(call).await.status, status);
            }
        }
        let private = get("/x").to_app(CLIENT_APP).with("host", PRIVATE);
        assert_eq!(alone.proxy(private).await.json()["code"], "forbidden");
        for _ in 0..3 {
            let reply = alone.proxy(get("/x").to_app(OTHER_APP)).await;
            assert_eq!(reply.json()["code"], "identity_mismatch");
        }
        for _ in 0..2 {
            assert_eq!(alone.proxy(get("/x").to_app("no id")).await.status, 400);
        }
        let connect = request(
            Method::CONNECT,
            "app.local:443",
            http_body_util::Empty::<bytes::Bytes>::new(),
        );
        assert_eq!(alone.proxy(connect).await.status, 405);
        for _ in 0..4 {
            assert_eq!(alone.proxy(get("/health")).await.status, 200);
        }
        assert_eq!(alone.proxy(get("/info")).await.status, 200);
        let stranger = alone
            .machine
            .call_as_peer(None, get("/x"))
            .await
            .expect("an answer");
        assert_eq!(stranger.status, 401);

        let now = scrape(metrics).await;
        for (target, outcome, count) in [
            (CLIENT_APP, "2xx", 7.0),
            (CLIENT_APP, "3xx", 3.0),
            (CLIENT_APP, "4xx", 3.0),
            (CLIENT_APP, "5xx", 1.0),
            (OTHER_APP, "identity_mismatch", 3.0),
            ("self", "bad_target", 2.0),
            ("self", "connect_not_served", 1.0),
            ("self", "2xx", 4.0),
            ("agent", "2xx", 1.0),
        ] {
            assert_eq!(
                now.of(&requests(target, outcome)),
                count,
                "{target} {outcome}\n{now:#?}"
            );
        }
        // What comes in is counted by the built-in front, and not by nginx.
        let (of_backend, all) = match has_nginx() {
            true => ([0.0; 4], 25.0),
            false => ([7.0, 3.0, 2.0, 1.0], 38.0),
        };
        for (outcome, count) in ["2xx", "3xx", "4xx", "5xx"].into_iter().zip(of_backend) {
            assert_eq!(
                now.of(&requests("backend", outcome)),
                count,
                "{outcome}\n{now:#?}"
            );
        }
        assert_eq!(now.sum("dstack_vpc_mesh_requests_total"), all, "{now:#?}");

        let latency = |part: &str, to: &str| {
            now.of(&format!(
                "dstack_vpc_mesh_request_duration_seconds_{part}{{{to}}}"
            ))
        };
        assert_eq!(latency("count", "to=\"peer\""), 14.0);
        assert_eq!(latency("bucket", "le=\"+Inf\",to=\"peer\""), 14.0);
        assert!(latency("sum", "to=\"peer\"") > 0.0);
        assert_eq!(latency("count", "to=\"agent\""), 1.0);

        // Heads come to it.
        let bytes = |way| {
            now.of(&format!(
                "dstack_vpc_mesh_{way}_bytes_total{{target=\"{CLIENT_APP}\"}}"
            ))
        };
        let (sent, received) = (bytes("sent"), bytes("received"));
        assert!((100_000.0..110_000.0).contains(&sent), "{sent}");
        assert!((200_000.0..220_000.0).contains(&received), "{received}");
        assert_eq!(
            now.of(&format!(
                "dstack_vpc_mesh_sent_bytes_total{{target=\"{OTHER_APP}\"}}"
            )),
            0.0
        );

        // Each worker connects once, and all of these connections wait now.
        let handshakes = |outcome: &str| {
            now.of(&format!(
                "dstack_vpc_mesh_handshakes_total{{outcome=\"{outcome}\"}}"
            ))
        };
        assert_eq!(handshakes("identity_mismatch"), 3.0);
        let made = handshakes("full") + handshakes("resumed");
        assert!(made >= 1.0, "{now:#?}");
        assert_eq!(
            now.of("dstack_vpc_mesh_pool_connections{state=\"idle\",to=\"peer\"}"),
            made
        );
        assert_eq!(
            now.of("dstack_vpc_mesh_pool_connections{state=\"active\",to=\"peer\"}"),
            0.0
        );
        assert_eq!(
            now.of("dstack_vpc_mesh_handshake_duration_seconds_count{}"),
            made + 3.0
        );

        for (backend, outcome, count) in [
            ("default", "allowed", 13.0),
            ("private", "not_allowed", 1.0),
            ("default", "no_certificate", 1.0),
        ] {
            let series =
                format!("dstack_vpc_auth_decisions_total{{backend=\"{backend}\",outcome=\"{outcome}\"}}");
            assert_eq!(now.of(&series), count, "{series}\n{now:#?}");
        }
    });
}

#[test]
fn calls_that_fail_on_the_way_are_counted_by_what_failed() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let https = alone.machine.ports.https.to_string();
        assert_eq!(alone.proxy(get("/x").to_app(CLIENT_APP)).await.status, 200);
        let closed = Port::reserve();
        let gateway = |toml: String| toml.replace(&format!("fixed/{https}"), &format!("fixed/{closed}"));
        alone.machine.edit(gateway).await;
        for _ in 0..3 {
            let reply = alone.proxy(get("/x").to_app(CLIENT_APP)).await;
            assert_eq!(reply.json()["code"], "connect_refused");
        }
        // One that takes connections and says nothing: the client goes before there is an answer.
        let silent = tokio::net::TcpListener::bind(closed.addr())
            .await
            .expect("a listener");
        let hold = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = silent.accept().await {
                held.push(stream);
            }
        });
        let call = http::send(alone.machine.ports.client.addr(), get("/x").to_app(CLIENT_APP));
        assert!(
            tokio::time::timeout(Duration::from_millis(300), call)
                .await
                .is_err()
        );
        let gone = requests(CLIENT_APP, "client_gone");
        let counted = poll(Duration::from_secs(10), async || {
            let now = scrape(alone.metrics.addr()).await;
            (now.of(&gone) == 1.0).then_some(now)
        });
        let now = counted.await.expect("the client that went is counted");
        hold.abort();
        assert_eq!(now.of(&requests(CLIENT_APP, "2xx")), 1.0);
        assert_eq!(now.of(&requests(CLIENT_APP, "connect_refused")), 3.0);
        for (outcome, count) in [("full", 1.0), ("connect_refused", 3.0), ("client_gone", 1.0)] {
            let series = format!("dstack_vpc_mesh_handshakes_total{{outcome=\"{outcome}\"}}");
            assert_eq!(now.of(&series), count, "{series}\n{now:#?}");
        }
        // What was pooled belonged to the former gateway; the housekeeping of the other workers comes to it in time.
        let emptied = poll(Duration::from_secs(15), async || {
            let now = scrape(alone.metrics.addr()).await;
            (now.sum("dstack_vpc_mesh_pool_connections{") == 0.0).then_some(())
        });
        assert!(emptied.await.is_some(), "connections to the former gateway stay");
    });
}

#[test]
fn the_machine_and_the_daemon_are_told_as_they_are() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let metrics = alone.metrics.addr();
        let first = scrape(metrics).await;
        let obtained = "dstack_vpc_certificate_requests_total{outcome=\"obtained\"}";
        alone.machine.ask_for_renewal().await;
        let renewed = poll(Duration::from_secs(20), async || {
            let now = scrape(metrics).await;
            (now.of(obtained) == first.of(obtained) + 1.0).then_some(())
        });
        assert!(renewed.await.is_some(), "a renewal is counted");
        let applied = "dstack_vpc_reconcile_changes_total{outcome=\"applied\"}";
        let refused = "dstack_vpc_reconcile_changes_total{outcome=\"refused\"}";
        let (applies, refusals) = {
            let settled = alone.machine.until_ready().await;
            (settled.counters.applied, settled.counters.refused)
        };
        alone
            .machine
            .edit(|toml| toml.replace("role = \"mesh\"", "role = \"mess\""))
            .await;
        let status = alone.machine.status().await.expect("the daemon answers");
        assert!(status.counters.applied >= applies && status.counters.refused == refusals + 1);

        let reply = page(metrics, OPEN_METRICS).await;
        assert_eq!(
            reply.all("content-type"),
            ["application/openmetrics-text; version=1.0.0; charset=utf-8"]
        );
        let now = Samples::parse(&reply.text(), "open");
        let seconds = |at: jiff::Timestamp| at.as_millisecond() as f64 / 1e3;
        let identity = status.identity.expect("an identity");
        for (series, value) in [
            (
                "dstack_vpc_generation{}",
                f64::from(status.generation.expect("a generation")),
            ),
            ("dstack_vpc_condition{type=\"Ready\"}", 1.0),
            ("dstack_vpc_condition{type=\"Configured\"}", 0.0),
            ("dstack_vpc_condition{type=\"Degraded\"}", 1.0),
            ("dstack_vpc_reconcile_owed{}", 0.0),
            (applied, status.counters.applied as f64),
            (refused, status.counters.refused as f64),
            ("dstack_vpc_reconcile_drift_repaired_total{kind=\"program\"}", 0.0),
            (
                "dstack_vpc_reconcile_changes_total{outcome=\"failed\"}",
                status.counters.failed as f64,
            ),
            ("dstack_vpc_rollout_decisions_total{decision=\"confirmed\"}", 0.0),
            (
                "dstack_vpc_rollout_decisions_total{decision=\"not_confirmed\"}",
                0.0,
            ),
            ("dstack_vpc_rollout_decisions_total{decision=\"gone_back\"}", 0.0),
            ("dstack_vpc_rollout_held{}", 0.0),
            ("dstack_vpc_rollout_unconfirmed{}", 0.0),
            (
                "dstack_vpc_config_generation{}",
                status.config.observed_generation as f64,
            ),
            ("dstack_vpc_log_dropped_lines_total{log=\"daemon\"}", 0.0),
            (
                &format!(
                    "dstack_vpc_build_info{{version=\"{}\"}}",
                    env!("CARGO_PKG_VERSION")
                ),
                1.0,
            ),
            (
                "process_start_time_seconds{}",
                seconds(status.started_at.expect("a start")),
            ),
        ] {
            assert_eq!(now.of(series), value, "{series}\n{now:#?}");
        }
        let nginx = now.of("dstack_vpc_service_up{service=\"nginx\"}");
        assert_eq!(nginx, if has_nginx() { 1.0 } else { 0.0 });
        let not_after = now.of("dstack_vpc_certificate_not_after_timestamp_seconds{}");
        assert!(
            (not_after - seconds(identity.not_after)).abs() < 1.0,
            "{not_after}"
        );
        assert!(now.of("dstack_vpc_reconciles_total{}") >= 3.0);
        assert!(now.of("dstack_vpc_reconcile_duration_seconds_count{}") >= 3.0);
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        let success = now.of("dstack_vpc_reconcile_last_success_timestamp_seconds{}");
        assert!((clock - 60.0..=clock).contains(&success), "{success}");
        assert!(now.of("process_cpu_seconds_total{}") > 0.0);
        let resident = now.of("process_resident_memory_bytes{}");
        assert!((1e6..1e9).contains(&resident), "{resident}");
        assert!(now.of("process_virtual_memory_bytes{}") > resident);
        assert!(now.of("process_open_fds{}") > 10.0 && now.of("process_max_fds{}") >= 1024.0);
        assert!(now.of("process_threads{}") > 1.0);

        // The older format says the same.
        let reply = page(metrics, "text/plain;version=0.0.4").await;
        assert_eq!(
            reply.all("content-type"),
            ["text/plain; version=0.0.4; charset=utf-8"]
        );
        let older = Samples::parse(&reply.text(), "text");
        let names = |samples: &Samples| samples.0.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&older), names(&now));
        assert!(
            reply
                .text()
                .contains("# TYPE dstack_vpc_mesh_requests_total counter\n")
        );
        let documented = dstack_vpc::metrics::reference();
        for line in reply
            .text()
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
        {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(
                documented.contains(&format!("| `{name}` |")),
                "{name} is not in docs/metrics.md"
            );
        }
    });
}

#[test]
fn the_listener_opens_moves_and_closes_while_everything_runs() {
    run(async {
        let alone = Alone::start(|_| {}).await;
        let (first, second) = (alone.metrics.addr(), Port::reserve());
        assert_eq!(alone.proxy(get("/x").to_app(CLIENT_APP)).await.status, 200);

        let taken = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a listener");
        let holder = taken.local_addr().expect("its address").to_string();
        let to = |from: String, to: String| move |toml: String| toml.replace(&from, &to);
        let status = alone.machine.edit(to(first.to_string(), holder.clone())).await;
        let error = status.last_error.expect("refused").message;
        assert!(
            error.contains("metrics.listen") && error.contains("taken"),
            "{error}"
        );
        assert_eq!(scrape(first).await.of(&requests(CLIENT_APP, "2xx")), 1.0);

        alone.machine.edit(to(holder, second.to_string())).await;
        assert_eq!(scrape(second.addr()).await.of(&requests(CLIENT_APP, "2xx")), 1.0);
        let closed = |addr| async move {
            let closing = poll(Duration::from_secs(10), async || {
                tokio::net::TcpStream::connect(addr).await.is_err().then_some(())
            });
            closing.await.is_some()
        };
        assert!(closed(first).await, "where it was, nobody listens");

        let off = format!("listen = \"{second}\"");
        alone
            .machine
            .edit(to(off.clone(), "listen = \"\"".to_owned()))
            .await;
        assert!(closed(second.addr()).await, "it is closed");
        alone.machine.edit(to("listen = \"\"".to_owned(), off)).await;
        assert_eq!(scrape(second.addr()).await.of(&requests(CLIENT_APP, "2xx")), 1.0);
        assert!(alone.agent.socket(CLIENT_APP).exists() && !alone.backend.seen().is_empty());
    });
}
