//! The guest agent, the KMS, the gateways, the clock.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use dstack_vpc::agent::dev::{Faults, LeafRequest, Pki};
use dstack_vpc::names::AppId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::Patient;
use super::tls::acceptor;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_and_the_kms_do_wrong_is_told_apart() {
    let cases: [(&str, Faults, &str, &str, &str); 7] = [
        (
            "well",
            Faults::default(),
            "kms",
            "ok",
            "the KMS issues certificates",
        ),
        (
            "kms down",
            Faults {
                kms_down: true,
                ..Faults::default()
            },
            "kms",
            "error",
            "the KMS fails",
        ),
        (
            "kms slow",
            Faults {
                kms_delay_ms: 3500,
                ..Faults::default()
            },
            "kms",
            "warning",
            "took 3.",
        ),
        (
            "no kms",
            Faults {
                no_kms: true,
                ..Faults::default()
            },
            "kms",
            "error",
            "deployed without a KMS",
        ),
        (
            "wrong app",
            Faults {
                wrong_app: true,
                ..Faults::default()
            },
            "chain",
            "error",
            "for the app eeee",
        ),
        (
            "broken chain",
            Faults {
                broken_chain: true,
                ..Faults::default()
            },
            "chain",
            "error",
            "does not lead to its root \"O=Dstack, CN=Dstack KMS CA\"",
        ),
        (
            "agent slow",
            Faults {
                delay_ms: 6000,
                ..Faults::default()
            },
            "agent",
            "error",
            "did not answer within 5s",
        ),
    ];
    let all = cases.map(async |(case, faults, check, severity, words)| {
        let patient = Patient::new();
        let agent = patient.agent(faults).await;
        let report = patient.examine().await;
        let mend = report.says(check, severity, words);
        match case {
            "kms down" => {
                assert!(
                    mend.contains("-o /dev/null") && mend.contains("GetTlsKey?"),
                    "how to see: {mend}"
                );
                assert!(mend.contains("grep kms_urls"), "{mend}");
                report.says("agent", "ok", "answers");
            }
            "broken chain" => assert!(mend.contains("another version of the platform's image"), "{mend}"),
            _ => {}
        }
        agent.stop().await;
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_there_and_a_socket_that_is_stale() {
    let patient = Patient::new();
    let mend = patient.examine().await.says("agent", "error", "not there");
    assert!(mend.contains("volumes: [\"/var/run/dstack.sock:"), "{mend}");
    drop(std::os::unix::net::UnixListener::bind(patient.path("agent.sock")).unwrap());
    let mend = patient.examine().await.says("agent", "error", "nobody listens");
    assert!(mend.contains("mount the socket's folder"), "{mend}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_never_answers_costs_ten_seconds_and_is_named() {
    let patient = Patient::new();
    let agent = patient
        .agent(Faults {
            kms_delay_ms: 60_000,
            ..Faults::default()
        })
        .await;
    let begun = std::time::Instant::now();
    let report = patient.examine().await;
    report.says("kms", "error", "the KMS is too slow");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_without_a_port_without_a_domain_and_of_another_kms() {
    let patient = Patient::new();
    let agent = patient.agent(Faults::default()).await;
    let url = format!("http://{}", agent.gateway_addr().unwrap());

    let report = patient.examine().await;
    report.says("gateway", "error", "there is no ");

    patient.host_says(&["http://127.0.0.1".to_owned()]);
    let mend = patient
        .examine()
        .await
        .says("gateway", "error", "the URL has no port");
    assert!(mend.contains("\"https://127.0.0.1:9202\""), "{mend}");

    patient.host_says(std::slice::from_ref(&url));
    let report = patient.examine().await;
    report.says("gateway", "ok", "tells its domain, apps.example.com:443");
    report.says("clock", "ok", "agrees");

    patient.host_says(&["http://127.0.0.1".to_owned(), url.clone()]);
    let report = patient.examine().await;
    report.says("gateway", "warning", "the URL has no port");
    assert_eq!(report.of("gateway").len(), 2);

    agent.set_faults(|faults| faults.gateway_unconfigured = true);
    patient.host_says(&[url]);
    patient
        .examine()
        .await
        .says("gateway", "error", "the gateway has no domain yet");

    agent.set_faults(|faults| faults.gateway_unconfigured = false);
    let (ours, stranger) = (
        Pki::load_or_create(patient.dir.path()).unwrap(),
        Pki::new().unwrap(),
    );
    for (pki, known) in [(&ours, true), (&stranger, false)] {
        let gateway = TlsGateway::start(pki, Duration::ZERO).await;
        patient.host_says(&[gateway.url()]);
        let report = patient.examine().await;
        report.says("gateway", "ok", "tells its domain");
        match known {
            true => assert_eq!(report.of("gateway-certificate"), []),
            false => drop(report.says("gateway-certificate", "warning", "not of our KMS")),
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_differs_from_the_gateways_is_told_with_how_much() {
    let patient = Patient::new();
    let agent = patient.agent(Faults::default()).await;
    let pki = Pki::load_or_create(patient.dir.path()).unwrap();
    for (ahead, severity) in [(600, "warning"), (3 * 3600, "error")] {
        let gateway = TlsGateway::start(&pki, Duration::from_secs(ahead)).await;
        patient.host_says(&[gateway.url()]);
        patient
            .examine()
            .await
            .says("clock", severity, "behind that of https://127.0.0.1");
    }
    agent.stop().await;
}

/// A gateway with a certificate of `pki`'s KMS and a clock of its own.
struct TlsGateway {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsGateway {
    async fn start(pki: &Pki, ahead: Duration) -> Self {
        let issued = pki
            .issue(&AppId::from_bytes([0x6a; 20]), &LeafRequest::both())
            .unwrap();
        let acceptor = acceptor(&issued);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let _ = tls.read(&mut [0; 4096]).await;
                let body = r#"{"base_domain":"apps.example.com","external_port":443}"#;
                let date = httpdate::fmt_http_date(SystemTime::now() + ahead);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nDate: {date}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
        Self { addr, task }
    }

    fn url(&self) -> String {
        format!("https://{}", self.addr)
    }
}

impl Drop for TlsGateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}
