//! `dstack-vpc doctor`: each thing that can be wrong with a machine, made wrong.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dstack_vpc::agent::dev::{DevAgent, Faults, LeafRequest, Machine, Options, Pki};
use dstack_vpc::names::AppId;
use dstack_vpc::spec::AgentAddr;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

/// A machine on which nothing runs: a configuration, a state directory, an agent and what the host says.
struct Patient {
    dir: TempDir,
    toml: String,
}

/// `(severity, what, mend)` of every finding of one check.
type Found = Vec<(String, String, String)>;

struct Report {
    exit: Option<i32>,
    json: Value,
}

impl Patient {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!(
            "[dstack]\nagent = \"unix:{0}/agent.sock\"\nhost_shared_dir = \"{0}\"\n",
            dir.path().display()
        );
        Self { dir, toml }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds lines to vpc.toml; those before the first section go first.
    fn with(mut self, first: &str, more: &str) -> Self {
        self.toml = format!("{first}\n{}{more}\n", self.toml);
        self
    }

    async fn agent(&self, faults: Faults) -> DevAgent {
        DevAgent::start(Options {
            pki: Pki::load_or_create(self.dir.path()).unwrap(),
            machines: vec![Machine {
                listen: AgentAddr::Unix(self.path("agent.sock")),
                app_id: AppId::from_bytes([0xa1; 20]),
                instance_id: None,
                faults,
            }],
            gateway: Some((
                ([127, 0, 0, 1], 0).into(),
                "apps.example.com:443".parse().unwrap(),
            )),
        })
        .await
        .unwrap()
    }

    fn host_says(&self, gateways: &[String]) {
        let config = serde_json::json!({ "gateway_urls": gateways });
        std::fs::write(self.path(".sys-config.json"), config.to_string()).unwrap();
    }

    fn command(&self, before: &[&str], args: &[&str]) -> Command {
        self.command_of(assert_cmd::cargo::cargo_bin!("dstack-vpc"), before, args)
    }

    fn command_of(&self, binary: &Path, before: &[&str], args: &[&str]) -> Command {
        std::fs::write(self.path("vpc.toml"), &self.toml).unwrap();
        let words: Vec<_> = before
            .iter()
            .copied()
            .map(std::ffi::OsStr::new)
            .chain([binary.as_os_str()])
            .collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--config".as_ref(), self.path("vpc.toml").as_os_str()])
            .args(["--state-dir".as_ref(), self.path("state").as_os_str()])
            .arg("doctor")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    async fn examine_as(&self, before: &[&str]) -> Report {
        Report::from(self.command(before, &["--json"]).output().await.unwrap())
    }

    async fn examine(&self) -> Report {
        self.examine_as(&[]).await
    }
}

impl From<Output> for Report {
    fn from(output: Output) -> Self {
        let error = String::from_utf8_lossy(&output.stderr);
        Self {
            exit: output.status.code(),
            json: serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}")),
        }
    }
}

impl Report {
    fn of(&self, check: &str) -> Found {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .filter(|finding| finding["check"] == check)
            .map(|finding| {
                let mend = finding["mend"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(text)
                    .collect::<Vec<_>>();
                let (severity, what) = (text(&finding["severity"]), text(&finding["what"]));
                if severity != "ok" && severity != "note" {
                    assert!(!mend.is_empty() && finding["why"] != "", "no advice: {finding}");
                }
                (severity, what, mend.join("\n"))
            });
        found.collect()
    }

    /// The one finding of a check: its severity, and words of it.
    #[track_caller]
    fn says(&self, check: &str, severity: &str, words: &str) -> String {
        let found = self.of(check);
        let one = found
            .iter()
            .find(|(how, what, _)| how == severity && what.contains(words));
        match one {
            Some((_, _, mend)) => mend.clone(),
            None => panic!(
                "no {severity} {check:?} with {words:?} in {found:#?}\n{:#}",
                self.json
            ),
        }
    }
}

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
    patient.examine().await.says("agent", "error", "not there");
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

#[tokio::test(flavor = "multi_thread")]
async fn taken_ports_missing_programs_and_what_the_configuration_does_wrong() {
    let holder = StdListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let api = StdListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let patient = Patient::new().with(
        "role = \"server+node\"\nallowed_apps = []",
        &format!(
            "[mesh]\nhttp_listen = \"{taken}\"\n[server]\napi_listen = \"0.0.0.0:{api}\"\n[node]\nname = \"db-1\"\n\
             [nginx]\nprogram = \"/none/nginx\"\n[supervisor]\nprogram = \"/none/supervisord\"\n\
             [headscale]\nprogram = \"{0}/headscale\"\n[tailscale]\nprogram = \"{0}/tailscaled\"\nclient = \"/none/tailscale\"",
            "/none"
        ),
    );
    let report = patient.examine().await;
    assert_eq!(report.exit, Some(1));
    let mend = report.says("port", "error", &format!("mesh.http_listen {taken} is taken by"));
    assert!(mend.contains(&format!("kill {}", std::process::id())), "{mend}");
    for program in ["nginx", "supervisord", "headscale", "tailscaled", "tailscale"] {
        report.says(program, "error", "is not installed");
    }
    report.says(
        "configuration",
        "warning",
        "whoever reaches `server.api_listen` can pass for any app",
    );
    report.says("vpn-prefix", "note", "lies outside 100.64.0.0/10");
    report.says("server-url", "error", "needs the gateway domain");

    let old = patient.path("headscale");
    std::fs::write(&old, "#!/bin/sh\necho v0.25.1\n").unwrap();
    std::fs::set_permissions(&old, PermissionsExt::from_mode(0o755)).unwrap();
    let patient = Patient {
        toml: patient
            .toml
            .replace("/none/headscale", &old.display().to_string()),
        dir: patient.dir,
    };
    patient
        .examine()
        .await
        .says("headscale", "error", "headscale 0.25.1 is too old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_net_admin_and_modules_that_cannot_be_loaded() {
    let patient = Patient::new().with(
        "role = \"node\"",
        "[node]\nname = \"db-1\"\nserver_app_id = \"self\"\ntun = \"device\"",
    );
    let root = nix::unistd::geteuid().is_root();
    let without: &[&str] = match root {
        true => &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"],
        false => &[],
    };
    let report = patient.examine_as(without).await;
    let mend = report.says("net-admin", "error", "NET_ADMIN is missing");
    assert!(mend.contains("cap_add: [NET_ADMIN]"), "{mend}");
    if root {
        patient.examine().await.says("net-admin", "ok", "is there");
    }

    let output = patient.command(&[], &["--load-modules"]).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("tailscale.modules_dir is not set"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_the_open_and_a_configuration_that_cannot_be_read() {
    let patient = Patient::new().with("role = \"meshh\"", "");
    let secrets = patient.path("state/secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("shared_key"), "not for you").unwrap();
    let before = everything(patient.dir.path());
    std::fs::write(patient.path("vpc.toml"), &patient.toml).unwrap();
    let report = patient.examine().await;
    report.says("configuration", "error", "cannot be used");
    let mend = report.says("secrets", "error", "others can read");
    assert!(
        mend.contains(&format!("chmod -R go= {}", secrets.display())),
        "{mend}"
    );
    assert!(!report.json.to_string().contains("not for you"));
    std::fs::remove_file(patient.path("vpc.toml")).unwrap();
    assert_eq!(
        everything(patient.dir.path()),
        before,
        "looking has changed something"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_told_to_be_root_and_not_that_ports_are_taken() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("only root can be another user");
    }
    let holder = StdListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("[mesh]\nhttp_listen = \"{}\"", holder.local_addr().unwrap());
    let patient = Patient::new().with("", &listen);
    std::fs::create_dir(patient.path("state")).unwrap();
    std::fs::set_permissions(patient.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = patient.path("dstack-vpc");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("dstack-vpc"), &copy).unwrap();
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    let output = patient
        .command_of(&copy, &nobody, &["--json"])
        .output()
        .await
        .unwrap();
    let report = Report::from(output);
    report.says("user", "warning", "not the user of the state directory, who is 0");
    assert!(
        report
            .of("port")
            .iter()
            .all(|(severity, what, _)| severity != "error" || !what.contains("http_listen"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_etcd_that_answer_and_that_do_not() {
    let ports = [0; 3]
        .map(|_| StdListener::bind("127.0.0.1:0").unwrap())
        .map(|it| it.local_addr().unwrap().port());
    let [client, peer, nobody] = ports;
    let patient = |endpoints: &str| {
        Patient::new().with(
            "role = \"server\"\nallowed_apps = []",
            &format!("[registry]\nstore = \"etcd\"\nendpoints = [{endpoints}]"),
        )
    };
    let (up, down) = (
        format!("\"http://127.0.0.1:{client}\""),
        format!("\"http://127.0.0.1:{nobody}\""),
    );
    let report = patient(&down).examine().await;
    let mend = report.says("etcd", "error", "Connection refused");
    assert!(
        mend.contains(&format!("curl -i http://127.0.0.1:{nobody}/health")),
        "{mend}"
    );

    let dir = tempfile::tempdir().unwrap();
    let _etcd = Etcd::start(dir.path(), client, peer).await;
    let report = patient(&format!("{up}, {down}")).examine().await;
    report.says("etcd", "ok", "etcd answers at");
    report.says("etcd", "warning", "Connection refused");
}

#[tokio::test]
async fn people_get_sentences_and_no_colours_in_a_pipe() {
    let patient = Patient::new();
    let output = patient.command(&[], &[]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("error    "), "{text}");
    assert!(
        text.contains("→ ") && text.contains("(--verbose lists them)"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    let output = patient.command(&[], &["--verbose"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nok       the state directory"), "{text}");
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
        let config = rustls::ServerConfig::builder_with_provider(dstack_vpc::ratls::provider().clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(issued.chain(), issued.key().unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
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

/// One real member.
struct Etcd(Child);

impl Etcd {
    async fn start(dir: &Path, client: u16, peer: u16) -> Self {
        let (client_url, peer_url) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let child = std::process::Command::new("etcd")
            .arg("--data-dir")
            .arg(dir)
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd: run `make setup`");
        let etcd = Self(child);
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let health = Command::new("curl")
                .args(["-sf", &format!("{client_url}/health")])
                .output()
                .await
                .unwrap();
            if String::from_utf8_lossy(&health.stdout).contains("true") {
                return etcd;
            }
            assert!(tokio::time::Instant::now() < end, "etcd does not become healthy");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every file below `dir`, with its time.
fn everything(dir: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    let mut queue = vec![dir.to_owned()];
    while let Some(path) = queue.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                queue.push(entry.path());
            } else {
                found.push((entry.path(), about.modified().unwrap()));
            }
        }
    }
    found.sort();
    found
}
